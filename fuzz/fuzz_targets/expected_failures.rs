//! Lists of expected failures for the conformance suite: any text is a list or an error with its line.
#![no_main]

use halite_conformance::ExpectedFailures;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match ExpectedFailures::parse(text) {
        Ok(list) => {
            let _ = list.reason("transfer/write");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
