//! The join of a layer's branches under criterion, residual sum and layer norms: verified first, then device time of graphs that go
//! through distinct operands, so that these come from memory. `paf kernels norm` measures more shapes, beside a copy. Without a GPU
//! there is nothing to measure.

use criterion::{Criterion, criterion_group, criterion_main};

#[cfg(feature = "cuda")]
mod gpu {
    use std::time::Duration;

    use criterion::{BenchmarkId, Criterion, Throughput};
    use paf_cuda::gpu::kernel::{self, JoinOperands, Norm};
    use paf_cuda::gpu::{Batch, Device, Event, Stream, Tensor};
    use paf_cuda::measure::norm::Shape;
    use paf_cuda::measure::spot;
    use paf_cuda::weights::{NormWeights, random_activations};
    use paf_cuda::{BatchShape, Dtype, Result};

    const EPS: f32 = 1e-5;
    /// Those of post-norm PAF, after a wide product and after two branches, and of a pre-norm design with two norms.
    const SHAPES: [Shape; 5] = [
        Shape { rows: 128, hidden_size: 1024, addends: 1, sum: false, norms: 1 },
        Shape { rows: 512, hidden_size: 1024, addends: 3, sum: false, norms: 1 },
        Shape { rows: 16384, hidden_size: 1024, addends: 3, sum: false, norms: 1 },
        Shape { rows: 128, hidden_size: 4096, addends: 3, sum: true, norms: 2 },
        Shape { rows: 16384, hidden_size: 4096, addends: 3, sum: true, norms: 2 },
    ];

    /// What one launch reads and writes.
    struct Set {
        addends: Vec<Tensor>,
        sum: Option<Tensor>,
        outs: Vec<Tensor>,
    }

    fn joins<'a>(sets: &'a mut [Set], batch: &'a Batch, vectors: &'a [(Tensor, Tensor)]) -> Vec<JoinOperands<'a>> {
        let join = |Set { addends, sum, outs }: &'a mut Set| JoinOperands {
            batch,
            addends: addends.iter().collect(),
            sum: sum.as_mut(),
            norms: outs.iter_mut().zip(vectors).map(|(out, (gamma, beta))| Norm { out, gamma, beta }).collect(),
            eps: EPS,
        };
        sets.iter_mut().map(join).collect()
    }

    pub fn run(criterion: &mut Criterion) -> Result<()> {
        let device = Device::new(0)?;
        let (stream, start, end) = (Stream::new(&device)?, Event::new_timing(&device)?, Event::new_timing(&device)?);
        let values = random_activations(1, 1_048_573, 1);
        let source = Tensor::from_host(&device, Dtype::Bf16, 1, values.len(), &values)?;
        let mut group = criterion.benchmark_group("norm, bf16");
        for shape in SHAPES {
            let Shape { rows, hidden_size: hidden, addends, sum, norms } = shape;
            let count = (3 * device.info().l2_bytes as usize).div_ceil(shape.bytes()).clamp(3, 160);
            let batch = Batch::new(&device, &BatchShape::new(1, rows)?)?;
            let random = |seed| random_activations(1, hidden, seed);
            let vectors = [2, 4].map(|seed| NormWeights { gamma: random(seed), beta: random(seed + 1) });
            let upload = |values: &[f32]| Tensor::from_host(&device, Dtype::Bf16, 1, hidden, values);
            let on_device = vectors.iter().map(|of| Ok((upload(&of.gamma)?, upload(&of.beta)?)));
            let on_device = on_device.collect::<Result<Vec<_>>>()?;
            let out = || Tensor::poisoned(&device, Dtype::Bf16, rows, hidden);
            let set = |_| {
                Ok(Set {
                    addends: (0..addends).map(|_| source.repeated(rows, hidden)).collect::<Result<_>>()?,
                    sum: sum.then(out).transpose()?,
                    outs: (0..norms).map(|_| out()).collect::<Result<_>>()?,
                })
            };
            let mut sets = (0..count).map(set).collect::<Result<Vec<_>>>()?;
            kernel::record_joins(&stream, &mut joins(&mut sets, &batch, &on_device))?.launch(&stream)?;
            for Set { addends, sum, outs } in &sets {
                let norms: Vec<_> = outs.iter().zip(&vectors).collect();
                spot::join(shape, addends, sum.as_ref(), &norms, EPS)?;
            }
            let graph = kernel::record_joins(&stream, &mut joins(&mut sets, &batch, &on_device))?;
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
