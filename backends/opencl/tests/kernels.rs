//! Loading and launching kernels.

mod common;

use common::*;
use halite_hal::{Scalar, as_bytes, from_bytes};

#[test]
fn a_kernel_runs_on_slices() {
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let double = double_it(&device);
    let align = device.info().limits.offset_alignment_bytes as usize / 4;
    let values: Vec<f32> = (0..1000u16).map(f32::from).collect();
    let x = upload(&device, &stream, as_bytes(&values));
    let out = upload(&device, &stream, as_bytes(&[-1f32; 1000]));
    let slice = |buffer: &halite_hal::BufferSlice| buffer.slice(4 * align as u64, 4 * 500).unwrap();
    let args = [slice(&x).into(), slice(&out).into(), Scalar::U32(499).into()];
    stream.launch(&double, [32, 1, 1], &args).unwrap();
    let got = from_bytes::<f32>(&download(&stream, &out));
    for (index, value) in got.into_iter().enumerate() {
        let inside = (align..align + 499).contains(&index);
        assert_eq!(value, if inside { 2. * index as f32 } else { -1. });
    }
}
