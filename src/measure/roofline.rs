//! The least time that a machine's ceilings allow for some work.

use std::time::Instant;

use crate::config::{BatchShape, EncoderConfig};
#[cfg(feature = "cuda")]
use crate::error::Result;

/// What a machine can do at most.
#[derive(Debug, Clone, PartialEq)]
pub struct Ceilings {
    /// Matrix products, FLOP/s; `None` where it is not known.
    pub flops_per_s: Option<f64>,
    /// Memory traffic, reads and writes together, bytes/s.
    pub bytes_per_s: f64,
    /// Where the two numbers come from.
    pub source: String,
}

/// What a stack of layers has to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Floating-point operations of the products, see [`LayerConfig::flops`](crate::LayerConfig::flops).
    pub flops: f64,
    /// Least memory traffic: every weight read once, the activations in and out of the stack once.
    pub bytes: f64,
}

impl Work {
    /// The work of one forward call, with elements of `element_bytes`.
    pub fn of(config: &EncoderConfig, shape: &BatchShape, element_bytes: usize) -> Self {
        let lengths: Vec<usize> = (0..shape.batch()).map(|i| shape.length(i)).collect();
        let layers = config.num_hidden_layers as f64;
        let weights = layers * config.layer.parameters() as f64;
        let activations = 2.0 * (shape.tokens() * config.layer.hidden_size) as f64;
        Self { flops: layers * config.layer.flops(&lengths), bytes: (weights + activations) * element_bytes as f64 }
    }

    /// The larger of the times that the two ceilings allow, µs; `None` where the products' ceiling is not known.
    pub fn floor_us(&self, ceilings: &Ceilings) -> Option<f64> {
        let flops_us = self.flops / ceilings.flops_per_s? * 1e6;
        Some(flops_us.max(self.bytes / ceilings.bytes_per_s * 1e6))
    }
}

/// Dense 16-bit multiply-adds with fp32 accumulation that the tensor cores of one multiprocessor do a clock; `None` for
/// capabilities that are not listed. `name` is the driver's. From NVIDIA's architecture white papers (GA100, GA102, AD102, GH100).
#[cfg(any(feature = "cuda", test))]
pub(super) fn tensor_fma_per_clock(name: &str, compute_capability: (u32, u32)) -> Option<f64> {
    match compute_capability {
        (8, 0) => Some(1024.0),
        // Professional cards (A40, L40S) do twice of what GeForce cards do when they accumulate in fp32.
        (8, 6 | 9) => Some(if name.contains("GeForce") { 256.0 } else { 512.0 }),
        (9, 0) => Some(2048.0),
        _ => None,
    }
}

/// A device's ceilings: tensor cores by arithmetic, memory by a copy.
///
/// # Errors
/// What the copy gives.
#[cfg(feature = "cuda")]
pub fn of_device(device: &crate::gpu::Device) -> Result<Ceilings> {
    let info = device.info();
    let flops_per_s = tensor_fma_per_clock(&info.name, info.compute_capability)
        .map(|fma| 2.0 * fma * f64::from(info.multiprocessors) * f64::from(info.sm_clock_khz) * 1e3);
    Ok(Ceilings {
        flops_per_s,
        bytes_per_s: device.copy_bandwidth()?,
        source: "tensor cores' dense rate at the highest clock; bandwidth of a measured device-to-device copy".into(),
    })
}

/// The CPU's ceilings, both measured: a large f32 product by the same library as the engine's, a large copy.
pub fn of_cpu() -> Ceilings {
    const ROWS: usize = 512;
    const N: usize = 4096;
    const K: usize = 1024;
    let (x, weight) = (vec![0.5f32; ROWS * K], vec![0.25f32; N * K]);
    let (mut y, bias) = (vec![0.0f32; ROWS * N], vec![0.0f32; N]);
    let mut flops_per_s = 0.0f64;
    for _ in 0..4 {
        let started = Instant::now();
        crate::cpu::product::linear(&mut y, &x, ROWS, &weight, &bias);
        flops_per_s = flops_per_s.max((2 * ROWS * N * K) as f64 / started.elapsed().as_secs_f64());
        std::hint::black_box(&mut y);
    }

    use rayon::prelude::*;
    let from = vec![1.0f32; 32 << 20];
    let mut to = vec![0.0f32; from.len()];
    let mut bytes_per_s = 0.0f64;
    for _ in 0..4 {
        let started = Instant::now();
        to.par_chunks_mut(1 << 20).zip(from.par_chunks(1 << 20)).for_each(|(to, from)| to.copy_from_slice(from));
        bytes_per_s = bytes_per_s.max((2 * size_of_val(from.as_slice())) as f64 / started.elapsed().as_secs_f64());
        std::hint::black_box(&mut to);
    }
    Ceilings {
        flops_per_s: Some(flops_per_s),
        bytes_per_s,
        source: "best of four measured f32 products (512 × 4096 × 1024) and of four measured copies".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LayerConfig;

    #[test]
    fn the_floor_is_the_slower_ceiling() {
        let config = EncoderConfig { layer: LayerConfig::new(1024, 16, 4096).unwrap(), num_hidden_layers: 24 };
        let ceilings = Ceilings { flops_per_s: Some(1e15), bytes_per_s: 4e12, source: String::new() };
        let work = |batch| Work::of(&config, &BatchShape::new(batch, 128).unwrap(), 2);
        // One sequence is bound by the weights' 604 MB, many by the products.
        let small = work(1);
        assert!((small.bytes - 605e6).abs() < 2e6, "{}", small.bytes);
        assert_eq!(small.floor_us(&ceilings), Some(small.bytes / 4e6));
        let large = work(64);
        assert_eq!(large.floor_us(&ceilings), Some(large.flops / 1e9));
        assert_eq!(large.floor_us(&Ceilings { flops_per_s: None, ..ceilings }), None);
    }
}
