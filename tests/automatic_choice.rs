//! What `auto` opens.

#![allow(missing_docs)]

mod common;

use halite::Session;
use halite::profiles::SearchPath;
use std::path::Path;

#[test]
fn auto_never_picks_an_emulated_device() {
    let session = common::session();
    let emulated = common::open(&session, "npu:0");
    assert!(emulated.device().info().has_feature("emulated"));
    assert!(!common::open(&session, "auto").device().info().has_feature("emulated"));
}

#[test]
fn a_peak_beyond_any_integer_is_the_highest_and_nothing_else() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("absurd-peak");
    std::fs::create_dir_all(&folder).expect("the test's folder is writable");
    let text = "name: fast\nextends: cpu\nmatch: { backend: cpu }\npeak: { f32: 99999999999999 TFLOP/s }\n";
    std::fs::write(folder.join("fast.yaml"), text).expect("the test's folder is writable");
    let session =
        Session::builder().without_environment().profiles(SearchPath::new(None, [folder])).build().unwrap();
    assert_eq!(common::open(&session, "auto").device().id().to_string(), "cpu:0");
}
