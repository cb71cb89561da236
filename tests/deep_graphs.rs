//! Graphs of a million nodes build, evaluate and drop on an ordinary stack.

#![allow(missing_docs)]

mod common;

use common::session;

#[test]
fn a_chain_of_a_million_nodes_builds_evaluates_and_drops() {
    const NODES: usize = 1_000_000;
    let session = session();
    let engine = common::open(&session, "cpu:0");
    // A thread's default stack is 2 MiB; recursion over the chain would need hundreds.
    let chain = std::thread::spawn(move || {
        let start = engine.tensor(&[0f32, 1.0], &[2]).unwrap();
        let mut x = start;
        for _ in 0..NODES {
            x = x.add(1.0).unwrap();
        }
        let unevaluated = x.add(1.0).unwrap();
        let sum = x.to_vec::<f32>().unwrap();
        drop(unevaluated);
        sum
    });
    assert_eq!(chain.join().expect("no stack overflow"), [NODES as f32, NODES as f32 + 1.0]);
}

#[test]
fn a_chain_that_was_never_evaluated_drops_too() {
    let session = session();
    let engine = common::open(&session, "cpu:0");
    let mut x = engine.zeros(&[3], halite::DType::F32).unwrap();
    for _ in 0..1_000_000 {
        x = x.neg().unwrap();
    }
    drop(x);
}
