//! The join of a layer's branches under criterion, residual sum and layer norms: verified first, then device time of graphs that go
//! through distinct operands, so that these come from memory. `paf kernels norm` measures more shapes, beside a copy. Without a GPU
//! there is nothing to measure.

mod common;

use criterion::{Criterion, criterion_group, criterion_main};

#[cfg(feature = "cuda")]
mod gpu {
    use criterion::{BenchmarkId, Criterion, Throughput};
    use paf_cuda::gpu::Device;
    use paf_cuda::measure::norm::{Operands, Shape};
    use paf_cuda::{Dtype, Result};

    use crate::common::Timer;

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
        let timer = Timer::new(&device)?;
        let mut group = criterion.benchmark_group("norm, bf16");
        for shape in SHAPES {
            let mut operands = Operands::new(&device, Dtype::Bf16, shape)?;
            operands.verify(&timer.stream)?;
            let count = operands.sets();
            let [graph, _hot] = operands.record(&timer.stream)?;
            group.throughput(Throughput::Bytes(shape.bytes() as u64));
            group.bench_function(BenchmarkId::new("paf-cuda", shape), |bencher| {
                bencher.iter_custom(|launches| timer.launches(&graph, count, launches));
            });
        }
        group.finish();
        Ok(())
    }
}

fn norm(criterion: &mut Criterion) {
    #[cfg(feature = "cuda")]
    if common::on_gpu(criterion, gpu::run) {
        return;
    }
    let _ = criterion;
    eprintln!("{}", common::NO_DEVICE);
}

criterion_group!(benches, norm);
criterion_main!(benches);
