//! Scripts of the layer `fault`: any text is a script or an error, and every drawn script is one.
#![no_main]

use halite_layers::fault::Fault;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // A leading @ names a file to read, of which there may be any.
    if !text.trim_start().starts_with('@')
        && let Err(error) = Fault::with_script(text)
    {
        assert!(!error.to_string().is_empty());
    }
    let seed = text.bytes().fold(0_u64, |seed, byte| seed.wrapping_mul(257).wrapping_add(byte.into()));
    let drawn = Fault::random_script(seed);
    assert!(Fault::with_script(&drawn).is_ok(), "{drawn}");
});
