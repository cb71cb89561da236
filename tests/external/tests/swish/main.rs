//! What a crate outside Halite's workspace can do with it: an operation of its own, checked and trained with on every
//! device.

mod dependencies;
mod devices;
mod gradients;
mod profiles;
mod training;
mod values;
