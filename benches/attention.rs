//! Attention under criterion: the planned kernel beside PyTorch's cuDNN and FlashAttention-2 where `python3` has PyTorch, each verified
//! first. Device time of graphs of several launches on operands that were just written. `paf kernels attention` measures more shapes and
//! variants, in turns. Without a GPU there is nothing to measure.

mod common;

use criterion::{Criterion, criterion_group, criterion_main};

#[cfg(feature = "cuda")]
mod gpu {
    use std::time::Duration;

    use criterion::{BenchmarkId, Criterion, Throughput};
    use paf_cuda::gpu::kernel::{self, Attention};
    use paf_cuda::gpu::{Batch, Device, Tensor};
    use paf_cuda::measure::attention::{Peer, Rotation, Shape};
    use paf_cuda::measure::spot;
    use paf_cuda::weights::random_activations;
    use paf_cuda::{BatchShape, Dtype, Result};

    use crate::common::Timer;

    const SHAPES: [&str; 6] = [
        "1x16x128x64",
        "8x16x512x64",
        "4x16x2048x64",
        "4x16x4096x64:causal",
        "4x16x4096x128",
        "1x32/8x4096x128:causal",
    ];
    const LAUNCHES: usize = 8;
    const HOT: Rotation = Rotation { name: "hot", sets: 1, launches: LAUNCHES };

    pub fn run(criterion: &mut Criterion) -> Result<()> {
        let device = Device::new(0)?;
        let timer = Timer::new(&device)?;
        let stream = &timer.stream;
        let mut peer = Peer::start("python3", 0).map_err(|error| eprintln!("{error}: measured without it")).ok();
        let values = random_activations(1, 4_194_301, 1);
        let source = Tensor::from_host(&device, Dtype::Bf16, 1, values.len(), &values)?;
        let block: Vec<f64> = values.iter().map(|&x| f64::from(Dtype::Bf16.round(x))).collect();
        let mut group = criterion.benchmark_group("attention, bf16");
        for shape in SHAPES {
            let shape: Shape = shape.parse()?;
            let (rows, width) = shape.qkv();
            let qkv = source.repeated(rows, width)?;
            let mut out = Tensor::poisoned(&device, Dtype::Bf16, rows, shape.heads * shape.head_dim)?;
            let batch = Batch::new(&device, &BatchShape::new(shape.batch, shape.seq_len)?)?;
            let attention = Attention {
                key_value_heads: shape.key_value_heads,
                causal: shape.causal,
                ..Attention::new(&batch, &qkv, shape.heads, shape.head_dim)
            };
            kernel::record_attentions(stream, &[attention; LAUNCHES], &mut out)?.launch(stream)?;
            spot::attention("paf-cuda", shape, &block, &out)?;
            let graph = kernel::record_attentions(stream, &[attention; LAUNCHES], &mut out)?;
            group.throughput(Throughput::Elements(shape.flops() as u64));
            let mut measure = |name: &str, sample: &mut dyn FnMut() -> Result<f64>| {
                group.bench_function(BenchmarkId::new(name, shape), |bencher| {
                    bencher.iter_custom(|launches| {
                        let samples = launches.div_ceil(LAUNCHES as u64);
                        let us: f64 = (0..samples).map(|_| sample().expect("a sample failed")).sum();
                        Duration::from_secs_f64(us / samples as f64 * launches as f64 * 1e-6)
                    });
                });
            };
            measure("paf-cuda", &mut || Ok(timer.replays_us(&graph, 1)? / LAUNCHES as f64));
            if let Some(peer) = &mut peer {
                for backend in peer.prepare(shape, Dtype::Bf16, &[HOT])?.backends {
                    measure(&backend, &mut || peer.sample(&backend, HOT.name));
                }
            }
        }
        group.finish();
        Ok(())
    }
}

fn attention(criterion: &mut Criterion) {
    #[cfg(feature = "cuda")]
    if common::on_gpu(criterion, gpu::run) {
        return;
    }
    let _ = criterion;
    eprintln!("{}", common::NO_DEVICE);
}

criterion_group!(benches, attention);
criterion_main!(benches);
