//! The join of a layer's branches under criterion, residual sum and layer norms: verified first, then device time of graphs that go
//! through distinct operands, so that these come from memory. `paf kernels norm` measures more shapes, beside a copy. Without a GPU
//! there is nothing to measure.

use criterion::{Criterion, criterion_group, criterion_main};

#[cfg(feature = "cuda")]
mod gpu {
    use std::time::Duration;

    use criterion::{BenchmarkId, Criterion, Throughput};
    use paf_cuda::gpu::{Device, Event, Stream};
    use paf_cuda::measure::norm::{Operands, Shape};
    use paf_cuda::{Dtype, Result};

    /// Those of post-norm PAF, after a wide product and after two branches, and of a pre-norm design with two norms.
    const SHAPES: [Shape; 5] = [
        Shape { rows: 128, hidden_size: 1024, addends: 1, sum: false, norms: 1 },
        Shape { rows: 512, hidden_size: 1024, addends: 3, sum: false, norms: 1 },
        Shape { rows: 16384, hidden_size: 1024, addends: 3, sum: false, norms: 1 },
        Shape { rows: 128, hidden_size: 4096, addends: 3, sum: true, norms: 2 },
        Shape { rows: 16384, hidden_size: 4096, addends: 3, sum: true, norms: 2 },
    ];

    pub fn run(criterion: &mut Criterion) -> Result<()> {
        let device = Device::new(0)?;
        let (stream, start, end) = (Stream::new(&device)?, Event::new_timing(&device)?, Event::new_timing(&device)?);
        let mut group = criterion.benchmark_group("norm, bf16");
        for shape in SHAPES {
            let mut operands = Operands::new(&device, Dtype::Bf16, shape)?;
            operands.verify(&stream)?;
            let count = operands.sets();
            let [graph, _hot] = operands.record(&stream)?;
            group.throughput(Throughput::Bytes(shape.bytes() as u64));
            group.bench_function(BenchmarkId::new("paf-cuda", shape), |bencher| {
                bencher.iter_custom(|launches| {
                    let time = || -> Result<Duration> {
                        let graphs = launches.div_ceil(count as u64);
                        start.record(&stream)?;
                        (0..graphs).try_for_each(|_| graph.launch(&stream))?;
                        end.record(&stream)?;
                        end.synchronize()?;
                        let us = end.elapsed_us_since(&start)? / (graphs * count as u64) as f64;
                        Ok(Duration::from_secs_f64(us * launches as f64 * 1e-6))
                    };
                    time().expect("a CUDA call failed")
                });
            });
        }
        group.finish();
        Ok(())
    }
}

fn norm(criterion: &mut Criterion) {
    #[cfg(feature = "cuda")]
    match paf_cuda::gpu::device_count() {
        Ok(0) | Err(paf_cuda::Error::NoDriver) => {}
        _ => return gpu::run(criterion).expect("the GPU does not work"),
    }
    let _ = criterion;
    eprintln!("no CUDA device: nothing to measure");
}

criterion_group!(benches, norm);
criterion_main!(benches);
