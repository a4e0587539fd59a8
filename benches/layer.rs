//! One layer of RoBERTa-large under criterion: SAF, and PAF in each schedule, each verified first. Device time of graph replays on a GPU; wall
//! time of the CPU engine where there is none.
//!
//! The weights of one layer fit the L2 cache of a large GPU, so these times are hot; `paf speedup` measures whole stacks,
//! whose weights stream from memory.

mod common;

use std::sync::Arc;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use paf_cuda::weights::{LayerWeights, random_activations, random_layers};
use paf_cuda::{BatchShape, Design, EncoderConfig, LayerConfig, Schedule, cpu, verify};

/// SAF, and PAF in each schedule.
fn variants(schedules: &[Schedule]) -> impl Iterator<Item = (Design, Schedule)> {
    let parallel = schedules.iter().map(|&schedule| (Design::PafPostNorm, schedule));
    std::iter::once((Design::SafPostNorm, Schedule::Serial)).chain(parallel)
}

fn config(design: Design) -> EncoderConfig {
    let layer = LayerConfig { design, ..LayerConfig::new(1024, 16, 4096).expect("valid dimensions") };
    EncoderConfig { layer, num_hidden_layers: 1 }
}

#[cfg(feature = "cuda")]
fn on_gpu(criterion: &mut Criterion) -> paf_cuda::Result<()> {
    use paf_cuda::Dtype;
    use paf_cuda::gpu::{Batch, Device, Encoder, EncoderWeights, Tensor};

    let device = Device::new(0)?;
    let dtype = Dtype::Bf16;
    let config_0 = config(Design::SafPostNorm);
    let layers: Vec<_> = random_layers(&config_0, 1).map(|layer| layer.rounded(dtype)).collect();
    let weights = Arc::new(EncoderWeights::upload(&device, &config_0, dtype, &layers)?);
    let oracle = verify::gpu::Oracle::new(layers, dtype);
    let timer = common::Timer::new(&device)?;
    let mut group = criterion.benchmark_group("layer, cuda bf16 graph");
    for (batch, seq_len) in [(1, 128), (1, 512), (8, 512)] {
        let batch = Batch::new(&device, &BatchShape::new(batch, seq_len)?)?;
        let rows = batch.shape().rows();
        let x = Tensor::from_host(&device, dtype, rows, 1024, &random_activations(rows, 1024, 2))?;
        group.throughput(Throughput::Elements(rows as u64));
        for (design, schedule) in variants(&Schedule::ALL) {
            let encoder = Encoder::new(&config(design), weights.clone())?;
            // One sequence tells: they do not see each other.
            oracle.check(&encoder, schedule, true, &BatchShape::new(1, seq_len)?)?;
            let mut workspace = encoder.workspace(&batch)?;
            let mut y = Tensor::poisoned(&device, dtype, rows, 1024)?;
            let graph = encoder.capture(&timer.stream, schedule, &batch, &x, &mut y, &mut workspace)?;
            let id = BenchmarkId::new(format!("{design} {schedule}"), format!("{}x{seq_len}", batch.shape().batch()));
            group.bench_function(id, |bencher| bencher.iter_custom(|replays| timer.launches(&graph, 1, replays)));
        }
    }
    group.finish();
    Ok(())
}

fn on_cpu(criterion: &mut Criterion) -> paf_cuda::Result<()> {
    let layers: Arc<Vec<LayerWeights>> = Arc::new(random_layers(&config(Design::SafPostNorm), 1).collect());
    let shape = BatchShape::new(1, 128)?;
    let x = random_activations(shape.rows(), 1024, 2);
    let mut y = vec![0.0; x.len()];
    let mut group = criterion.benchmark_group("layer, cpu f32");
    group.sample_size(20).throughput(Throughput::Elements(shape.rows() as u64));
    for (design, schedule) in variants(&cpu::SCHEDULES) {
        verify::cpu::stack(config(design), layers.clone(), schedule, &shape, 2)?;
        let encoder = cpu::Encoder::new(config(design), layers.clone())?;
        let mut workspace = encoder.workspace(&shape)?;
        group.bench_function(BenchmarkId::new(format!("{design} {schedule}"), "1x128"), |bencher| {
            bencher.iter_custom(|calls| {
                let started = Instant::now();
                for _ in 0..calls {
                    encoder.forward(schedule, &shape, &x, &mut y, &mut workspace).expect("operands fit");
                }
                started.elapsed()
            });
        });
    }
    group.finish();
    Ok(())
}

fn layer(criterion: &mut Criterion) {
    #[cfg(feature = "cuda")]
    if common::on_gpu(criterion, on_gpu) {
        return;
    }
    on_cpu(criterion).expect("the CPU engine does not work");
}

criterion_group!(benches, layer);
criterion_main!(benches);
