//! What `auto` opens.

#![allow(missing_docs)]

mod common;

#[test]
fn auto_never_picks_an_emulated_device() {
    let session = common::session();
    let emulated = common::open(&session, "npu:0");
    assert!(emulated.device().info().has_feature("emulated"));
    assert!(!common::open(&session, "auto").device().info().has_feature("emulated"));
}
