//! The language of `when`: a condition over shape variables, such as `m >= 64 and n % 16 == 0`.
//!
//! ```text
//! or      = and { "or" and }
//! and     = not { "and" not }
//! not     = "not" not | compare
//! compare = sum [ ("==" | "!=" | "<" | "<=" | ">" | ">=") sum ]
//! sum     = product { ("+" | "-") product }
//! product = unary { ("*" | "/" | "%") unary }
//! unary   = "-" unary | integer | variable | "(" or ")"
//! ```
//!
//! Numbers are 64-bit signed integers; `/` and `%` truncate towards zero. Whether a part is a number or a
//! condition is checked when the text is parsed, so evaluation fails only for unknown variables, for
//! division by zero and for results beyond 64 bits.

use std::fmt;

use crate::suggest;
use crate::yaml::quote;

/// More is no longer a rule that a person reads; the limits also bound recursion.
const MAX_LENGTH: usize = 1000;
const MAX_DEPTH: usize = 64;

/// A parsed condition. It prints in a canonical form, in which only the necessary parentheses are left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    expression: Expression,
}

/// Why a text is not a condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {hint}")]
pub struct ConditionError {
    problem: String,
    hint: String,
}

/// Why a condition has no value for these variables.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// The condition names a variable that the op does not have.
    #[error("names the unknown variable '{}'; {}", quote(.name), suggest::advice(.name, .known))]
    UnknownVariable {
        /// The name in the condition.
        name: String,
        /// The op's variables.
        known: Vec<String>,
    },
    /// Division or remainder by zero.
    #[error("divides by zero; guard the division, as in 'n > 0 and m / n > 2'")]
    DivisionByZero,
    /// A result beyond 64 bits.
    #[error("has a result beyond 64 bits; use smaller numbers")]
    Overflow,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Expression {
    Integer(i64),
    Variable(String),
    Negate(Box<Expression>),
    Not(Box<Expression>),
    Binary(Operator, Box<Expression>, Box<Expression>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Or,
    And,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Number,
    Condition,
}

impl Condition {
    /// Parses a condition.
    ///
    /// # Errors
    ///
    /// [`ConditionError`] names the word that does not fit and what to write.
    pub fn parse(text: &str) -> Result<Self, ConditionError> {
        if text.len() > MAX_LENGTH {
            return Err(ConditionError::new(
                format!("it is longer than {MAX_LENGTH} characters"),
                "split it over several entries",
            ));
        }
        let tokens = tokenize(text)?;
        let mut parser = Parser { tokens: &tokens, at: 0, depth: 0 };
        let expression = parser.or()?;
        match parser.peek() {
            Token::End => {}
            Token::Operator(operator) if operator.is_comparison() => {
                return Err(ConditionError::new(
                    format!("a second '{}' follows a comparison", operator.symbol()),
                    "join two comparisons with 'and'",
                ));
            }
            other => {
                return Err(ConditionError::new(
                    format!("'{}' is not expected", quote(other)),
                    "join comparisons with 'and' or 'or'",
                ));
            }
        }
        if expression.kind() == Kind::Number {
            return Err(ConditionError::new(
                format!("'{}' is a number, not a condition", quote(&expression)),
                "compare it, as in 'm >= 64'",
            ));
        }
        Ok(Self { expression })
    }

    /// The value for these variables.
    ///
    /// # Errors
    ///
    /// Every variable must be known, also in a part that would not be evaluated; arithmetic must stay
    /// within 64 bits.
    pub fn evaluate(&self, variables: &[(&str, i64)]) -> Result<bool, EvaluateError> {
        for name in self.variables() {
            if !variables.iter().any(|(known, _)| *known == name) {
                return Err(EvaluateError::UnknownVariable {
                    name: name.to_owned(),
                    known: variables.iter().map(|(known, _)| (*known).to_owned()).collect(),
                });
            }
        }
        self.expression.value(variables).map(|value| value != 0)
    }

    /// The variables that the condition names, in order of appearance, each once.
    pub fn variables(&self) -> Vec<&str> {
        let mut names = Vec::new();
        self.expression.collect_variables(&mut names);
        names
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.expression, f)
    }
}

impl ConditionError {
    fn new(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { problem: problem.into(), hint: hint.into() }
    }
}

impl Operator {
    const ALL: [(Self, &'static str); 13] = [
        (Self::Or, "or"),
        (Self::And, "and"),
        // Two-character symbols first, so that the tokenizer takes the longest.
        (Self::Equal, "=="),
        (Self::NotEqual, "!="),
        (Self::LessEqual, "<="),
        (Self::GreaterEqual, ">="),
        (Self::Less, "<"),
        (Self::Greater, ">"),
        (Self::Add, "+"),
        (Self::Subtract, "-"),
        (Self::Multiply, "*"),
        (Self::Divide, "/"),
        (Self::Remainder, "%"),
    ];

    fn symbol(self) -> &'static str {
        let entry = Self::ALL.iter().find(|(operator, _)| *operator == self);
        entry.expect("every operator has an entry in ALL").1
    }

    fn is_comparison(self) -> bool {
        self.precedence() == 3
    }

    /// Binding strength; `not` has 2 and unary minus 6.
    fn precedence(self) -> u8 {
        match self {
            Self::Or => 0,
            Self::And => 1,
            Self::Equal
            | Self::NotEqual
            | Self::Less
            | Self::LessEqual
            | Self::Greater
            | Self::GreaterEqual => 3,
            Self::Add | Self::Subtract => 4,
            Self::Multiply | Self::Divide | Self::Remainder => 5,
        }
    }

    fn operand_kind(self) -> Kind {
        if matches!(self, Self::Or | Self::And) { Kind::Condition } else { Kind::Number }
    }

    fn result_kind(self) -> Kind {
        if self.precedence() <= 3 { Kind::Condition } else { Kind::Number }
    }
}

impl Expression {
    fn kind(&self) -> Kind {
        match self {
            Self::Integer(_) | Self::Variable(_) | Self::Negate(_) => Kind::Number,
            Self::Not(_) => Kind::Condition,
            Self::Binary(operator, ..) => operator.result_kind(),
        }
    }

    /// Conditions are 0 or 1.
    fn value(&self, variables: &[(&str, i64)]) -> Result<i64, EvaluateError> {
        let overflow = EvaluateError::Overflow;
        match self {
            Self::Integer(value) => Ok(*value),
            Self::Variable(name) => {
                let found = variables.iter().find(|(known, _)| known == name);
                Ok(found.expect("evaluate looked up every variable before").1)
            }
            Self::Negate(inner) => inner.value(variables)?.checked_neg().ok_or(overflow),
            Self::Not(inner) => Ok(i64::from(inner.value(variables)? == 0)),
            Self::Binary(Operator::And, lhs, rhs) => {
                if lhs.value(variables)? == 0 {
                    Ok(0)
                } else {
                    rhs.value(variables)
                }
            }
            Self::Binary(Operator::Or, lhs, rhs) => {
                if lhs.value(variables)? != 0 {
                    Ok(1)
                } else {
                    rhs.value(variables)
                }
            }
            Self::Binary(operator, lhs, rhs) => {
                let (lhs, rhs) = (lhs.value(variables)?, rhs.value(variables)?);
                let divides = matches!(operator, Operator::Divide | Operator::Remainder);
                if divides && rhs == 0 {
                    return Err(EvaluateError::DivisionByZero);
                }
                let condition = |value: bool| Some(i64::from(value));
                match operator {
                    Operator::Add => lhs.checked_add(rhs),
                    Operator::Subtract => lhs.checked_sub(rhs),
                    Operator::Multiply => lhs.checked_mul(rhs),
                    Operator::Divide => lhs.checked_div(rhs),
                    Operator::Remainder => lhs.checked_rem(rhs),
                    Operator::Equal => condition(lhs == rhs),
                    Operator::NotEqual => condition(lhs != rhs),
                    Operator::Less => condition(lhs < rhs),
                    Operator::LessEqual => condition(lhs <= rhs),
                    Operator::Greater => condition(lhs > rhs),
                    Operator::GreaterEqual => condition(lhs >= rhs),
                    Operator::And | Operator::Or => unreachable!("matched above, with short circuit"),
                }
                .ok_or(overflow)
            }
        }
    }

    fn collect_variables<'a>(&'a self, names: &mut Vec<&'a str>) {
        match self {
            Self::Integer(_) => {}
            Self::Variable(name) => {
                if !names.contains(&name.as_str()) {
                    names.push(name);
                }
            }
            Self::Negate(inner) | Self::Not(inner) => inner.collect_variables(names),
            Self::Binary(_, lhs, rhs) => {
                lhs.collect_variables(names);
                rhs.collect_variables(names);
            }
        }
    }

    fn precedence(&self) -> u8 {
        match self {
            Self::Integer(_) | Self::Variable(_) => 7,
            Self::Negate(_) => 6,
            Self::Not(_) => 2,
            Self::Binary(operator, ..) => operator.precedence(),
        }
    }

    fn fmt_within(&self, f: &mut fmt::Formatter<'_>, least: u8) -> fmt::Result {
        if self.precedence() < least { write!(f, "({self})") } else { fmt::Display::fmt(self, f) }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(value) => write!(f, "{value}"),
            Self::Variable(name) => f.write_str(name),
            Self::Negate(inner) => {
                f.write_str("-")?;
                inner.fmt_within(f, 6)
            }
            Self::Not(inner) => {
                f.write_str("not ")?;
                inner.fmt_within(f, 2)
            }
            Self::Binary(operator, lhs, rhs) => {
                let precedence = operator.precedence();
                // Comparisons do not chain; the other operators group to the left.
                lhs.fmt_within(f, precedence + u8::from(operator.is_comparison()))?;
                write!(f, " {} ", operator.symbol())?;
                rhs.fmt_within(f, precedence + 1)
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Integer(i64),
    Name(String),
    Operator(Operator),
    Not,
    Open,
    Close,
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(value) => write!(f, "{value}"),
            Self::Name(name) => f.write_str(name),
            Self::Operator(operator) => f.write_str(operator.symbol()),
            Self::Not => f.write_str("not"),
            Self::Open => f.write_str("("),
            Self::Close => f.write_str(")"),
            Self::End => f.write_str("the end"),
        }
    }
}

fn tokenize(text: &str) -> Result<Vec<Token>, ConditionError> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first.is_ascii_alphanumeric() || first == '_' {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            tokens.push(word(&rest[..end])?);
            end
        } else {
            let (token, length) = symbol(rest)?;
            tokens.push(token);
            length
        };
        rest = rest[length..].trim_start();
    }
    tokens.push(Token::End);
    Ok(tokens)
}

fn word(word: &str) -> Result<Token, ConditionError> {
    if word.starts_with(|c: char| c.is_ascii_digit()) {
        return word.parse().map(Token::Integer).map_err(|_| {
            ConditionError::new(
                format!("'{}' is not an integer of 64 bits", quote(&word)),
                "write digits only",
            )
        });
    }
    Ok(match word {
        "and" => Token::Operator(Operator::And),
        "or" => Token::Operator(Operator::Or),
        "not" => Token::Not,
        _ => Token::Name(word.to_owned()),
    })
}

fn symbol(rest: &str) -> Result<(Token, usize), ConditionError> {
    for (wrong, right) in [("&&", "and"), ("||", "or"), ("&", "and"), ("|", "or")] {
        if rest.starts_with(wrong) {
            return Err(ConditionError::new(
                format!("'{wrong}' is not an operator"),
                format!("write '{right}'"),
            ));
        }
    }
    let found = Operator::ALL.iter().skip(2).find(|(_, symbol)| rest.starts_with(symbol));
    if let Some((operator, symbol)) = found {
        return Ok((Token::Operator(*operator), symbol.len()));
    }
    let first = rest.chars().next().unwrap_or(' ');
    match first {
        '(' => Ok((Token::Open, 1)),
        ')' => Ok((Token::Close, 1)),
        '=' => Err(ConditionError::new("'=' is not an operator", "write '=='")),
        '!' => Err(ConditionError::new("'!' is not an operator", "write 'not'")),
        _ => Err(ConditionError::new(
            format!("'{}' is not expected", first.escape_default()),
            "use integers, variables, comparisons, + - * / %, and, or, not, parentheses",
        )),
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn take_operator(&mut self, precedence: u8) -> Option<Operator> {
        match *self.peek() {
            Token::Operator(operator) if operator.precedence() == precedence => {
                self.at += 1;
                Some(operator)
            }
            _ => None,
        }
    }

    fn or(&mut self) -> Result<Expression, ConditionError> {
        self.chain(0, Self::and)
    }

    fn and(&mut self) -> Result<Expression, ConditionError> {
        self.chain(1, Self::not)
    }

    fn not(&mut self) -> Result<Expression, ConditionError> {
        if *self.peek() != Token::Not {
            return self.compare();
        }
        self.at += 1;
        let inner = self.deeper(Self::not)?;
        expect_kind(&inner, Kind::Condition, "not")?;
        Ok(Expression::Not(Box::new(inner)))
    }

    fn compare(&mut self) -> Result<Expression, ConditionError> {
        let lhs = self.sum()?;
        match self.take_operator(3) {
            Some(operator) => {
                let rhs = self.sum()?;
                binary(operator, lhs, rhs)
            }
            None => Ok(lhs),
        }
    }

    fn sum(&mut self) -> Result<Expression, ConditionError> {
        self.chain(4, Self::product)
    }

    fn product(&mut self) -> Result<Expression, ConditionError> {
        self.chain(5, Self::unary)
    }

    fn unary(&mut self) -> Result<Expression, ConditionError> {
        match self.take() {
            Token::Integer(value) => Ok(Expression::Integer(value)),
            Token::Name(name) => Ok(Expression::Variable(name)),
            Token::Operator(Operator::Subtract) => {
                let inner = self.deeper(Self::unary)?;
                expect_kind(&inner, Kind::Number, "-")?;
                Ok(Expression::Negate(Box::new(inner)))
            }
            Token::Open => {
                let inner = self.deeper(Self::or)?;
                match self.take() {
                    Token::Close => Ok(inner),
                    other => Err(ConditionError::new(
                        format!("'(' is not closed before {}", quote(&other)),
                        "add ')'",
                    )),
                }
            }
            Token::End => Err(ConditionError::new(
                "it ends where a number or a variable is expected",
                "write a comparison such as 'm >= 64'",
            )),
            other => Err(ConditionError::new(
                format!("'{other}' stands where a number or a variable is expected"),
                "write a comparison such as 'm >= 64'",
            )),
        }
    }

    /// `part { operator part }` for the operators of one precedence, grouped to the left.
    fn chain(
        &mut self,
        precedence: u8,
        part: fn(&mut Self) -> Result<Expression, ConditionError>,
    ) -> Result<Expression, ConditionError> {
        let mut lhs = part(self)?;
        while let Some(operator) = self.take_operator(precedence) {
            let rhs = part(self)?;
            lhs = binary(operator, lhs, rhs)?;
        }
        Ok(lhs)
    }

    fn deeper(
        &mut self,
        part: fn(&mut Self) -> Result<Expression, ConditionError>,
    ) -> Result<Expression, ConditionError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ConditionError::new(
                format!("it nests more than {MAX_DEPTH} deep"),
                "split it over several entries",
            ));
        }
        let inner = part(self);
        self.depth -= 1;
        inner
    }
}

fn binary(operator: Operator, lhs: Expression, rhs: Expression) -> Result<Expression, ConditionError> {
    for operand in [&lhs, &rhs] {
        expect_kind(operand, operator.operand_kind(), operator.symbol())?;
    }
    Ok(Expression::Binary(operator, Box::new(lhs), Box::new(rhs)))
}

fn expect_kind(operand: &Expression, expected: Kind, operator: &str) -> Result<(), ConditionError> {
    match (operand.kind(), expected) {
        (Kind::Number, Kind::Condition) => Err(ConditionError::new(
            format!("'{operator}' needs a condition, but '{}' is a number", quote(operand)),
            "compare it, as in 'm >= 64'",
        )),
        (Kind::Condition, Kind::Number) => Err(ConditionError::new(
            format!("'{operator}' needs a number, but '{}' is a condition", quote(operand)),
            "join conditions with 'and' or 'or'",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VARIABLES: &[(&str, i64)] = &[("m", 128), ("n", 10), ("k", 7), ("zero", 0)];

    #[test]
    fn conditions_have_the_value_of_the_usual_arithmetic() {
        for (text, expected) in [
            ("m >= 64", true),
            ("m < 64", false),
            ("m == 128 and n != 10", false),
            ("m == 128 or n != 10", true),
            ("not m == 128", false),
            ("not not m == 128", true),
            ("not m < 64 and n == 10", true),
            ("m * n + k == 1287", true),
            ("m - n - k == 111", true),
            ("m - (n - k) == 125", true),
            ("m / n == 12 and m % n == 8", true),
            ("-k / 2 == -3", true),
            ("--k == 7", true),
            ("m == 1 or n == 10 and k == 7", true),
            ("(m == 1 or n == 10) and k == 8", false),
            ("zero == 0 or m / zero == 1", true),
            ("m>=64 and n<=10", true),
            ("9223372036854775807 > m", true),
        ] {
            let condition = Condition::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(condition.evaluate(VARIABLES), Ok(expected), "{text}");
        }
    }

    #[test]
    fn printing_is_canonical_and_parses_back() {
        for (text, expected) in [
            ("m>=64", "m >= 64"),
            ("((m) - ((n - k))) > (0)", "m - (n - k) > 0"),
            (
                "(m == 1 or n == 2) and not (k == 3 and m == 4)",
                "(m == 1 or n == 2) and not (k == 3 and m == 4)",
            ),
            ("(m * n) + k == -(-2)", "m * n + k == --2"),
            ("-(m + n) < 0", "-(m + n) < 0"),
            ("not (not m == 1)", "not not m == 1"),
        ] {
            let condition = Condition::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(condition.to_string(), expected);
            assert_eq!(Condition::parse(expected).as_ref(), Ok(&condition));
        }
    }

    #[test]
    fn damaged_conditions_say_what_to_write() {
        const EXAMPLE: &str = "write a comparison such as 'm >= 64'";
        for (text, expected) in [
            ("", format!("it ends where a number or a variable is expected; {EXAMPLE}")),
            ("m >=", format!("it ends where a number or a variable is expected; {EXAMPLE}")),
            ("m > > 3", format!("'>' stands where a number or a variable is expected; {EXAMPLE}")),
            ("(m > 3", "'(' is not closed before the end; add ')'".to_owned()),
            ("m > 3)", "')' is not expected; join comparisons with 'and' or 'or'".to_owned()),
            ("m > 3 n > 4", "'n' is not expected; join comparisons with 'and' or 'or'".to_owned()),
            ("1 < m < 3", "a second '<' follows a comparison; join two comparisons with 'and'".to_owned()),
            ("m = 3", "'=' is not an operator; write '=='".to_owned()),
            ("m > 3 && n > 4", "'&&' is not an operator; write 'and'".to_owned()),
            ("!m", "'!' is not an operator; write 'not'".to_owned()),
            ("m", "'m' is a number, not a condition; compare it, as in 'm >= 64'".to_owned()),
            ("m and n > 3", "'and' needs a condition, but 'm' is a number; compare it, as in 'm >= 64'".to_owned()),
            (
                "(m > 3) + 1 > 2",
                "'+' needs a number, but 'm > 3' is a condition; join conditions with 'and' or 'or'".to_owned(),
            ),
            ("m > 3k", "'3k' is not an integer of 64 bits; write digits only".to_owned()),
            (
                "m > 9223372036854775808",
                "'9223372036854775808' is not an integer of 64 bits; write digits only".to_owned(),
            ),
            (
                "m > 1.5",
                "'.' is not expected; use integers, variables, comparisons, + - * / %, and, or, not, parentheses"
                    .to_owned(),
            ),
        ] {
            assert_eq!(Condition::parse(text).map_err(|error| error.to_string()), Err(expected), "{text}");
        }
    }

    #[test]
    fn hostile_conditions_are_refused_before_they_recurse() {
        let nested = format!("{}1{} > 0", "(".repeat(400), ")".repeat(400));
        let long = format!("{} > 0", vec!["1"; 600].join("+"));
        for text in [nested, "not ".repeat(200) + "m > 1", "-".repeat(500) + "m > 1", long] {
            assert!(Condition::parse(&text).is_err());
        }
        let chain = format!("{} > 0", vec!["1"; 400].join("+"));
        assert_eq!(Condition::parse(&chain).map(|condition| condition.evaluate(&[])), Ok(Ok(true)));
    }

    #[test]
    fn evaluation_reports_unknown_variables_and_arithmetic() {
        for (text, expected) in [
            ("q > 3", "names the unknown variable 'q'; use one of m, n, k, zero"),
            ("m > 3 or zer > 3", "names the unknown variable 'zer'; did you mean 'zero'?"),
            ("m / zero > 3", "divides by zero; guard the division, as in 'n > 0 and m / n > 2'"),
            ("m % zero > 3", "divides by zero; guard the division, as in 'n > 0 and m / n > 2'"),
            ("9223372036854775807 + m > 3", "has a result beyond 64 bits; use smaller numbers"),
            ("-(-9223372036854775807 - 1) > 3", "has a result beyond 64 bits; use smaller numbers"),
        ] {
            let condition = Condition::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(
                condition.evaluate(VARIABLES).map_err(|error| error.to_string()),
                Err(expected.to_owned())
            );
        }
    }
}
