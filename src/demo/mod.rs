//! The main job, `halite demo`: a small CNN learns handwritten digits on every device that is found.
//!
//! [`digits`] is the data, [`run`](mod@run) the training loop over anything that can take a step,
//! [`progress`] what a person sees meanwhile, and [`report`] and [`page`] what comes out: one JSON object, a
//! table or a self-contained page. None of them knows a tensor or a driver.

mod chart;
pub mod digits;
pub mod network;
pub mod page;
pub mod progress;
pub mod report;
pub mod run;
