//! Conditions and quantities of profiles: what is accepted prints as text that means the same.
#![no_main]

use halite_profiles::Condition;
use halite_profiles::units::{Unit, parse_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, i64, i64)| {
    let (text, m, n) = input;
    if let Ok(condition) = Condition::parse(text) {
        let names: Vec<String> = condition.variables().iter().map(|name| (*name).to_owned()).collect();
        let variables: Vec<(&str, i64)> = names
            .iter()
            .enumerate()
            .map(|(i, name)| (name.as_str(), if i % 2 == 0 { m } else { n }))
            .collect();
        let value = condition.evaluate(&variables);
        let printed = condition.to_string();
        let again = Condition::parse(&printed);
        // Parentheses may make the text longer than what is accepted.
        if let Ok(again) = again {
            assert_eq!(value, again.evaluate(&variables), "'{text}' prints as '{printed}'");
        } else {
            assert!(printed.len() > text.len(), "'{text}' prints as '{printed}'");
        }
    }
    for unit in [Unit::Percent, Unit::Bytes, Unit::Flops, Unit::Seconds, Unit::BytesPerCycle] {
        if let Ok(value) = unit.parse(text) {
            assert!(value.is_finite() && value >= 0.0);
        }
    }
    let _ = parse_bytes(text);
});
