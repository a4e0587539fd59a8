//! Products of a transformer layer under criterion: the planned kernel beside cuBLASLt where that is installed, with and
//! without bias and GELU, each verified first. Device time of graphs that go through distinct operands, so that weights come from memory.
//! `paf kernels gemm` measures more shapes and variants, in turns. Without a GPU there is nothing to measure.

mod common;

use criterion::{Criterion, criterion_group, criterion_main};

#[cfg(feature = "cuda")]
mod gpu {
    use criterion::{BenchmarkId, Criterion, Throughput};
    use paf_cuda::gpu::kernel::{self, Epilogue, Product};
    use paf_cuda::gpu::peer::{CublasLt, PeerEpilogue};
    use paf_cuda::gpu::{Device, Graph, Tensor};
    use paf_cuda::measure::spot;
    use paf_cuda::weights::random_activations;
    use paf_cuda::{Dtype, HiddenAct, Result};

    use crate::common::Timer;

    const SHAPES: [(usize, usize, usize); 5] =
        [(1, 4096, 4096), (64, 1024, 4096), (512, 3072, 1024), (2048, 4096, 1024), (8192, 4096, 4096)];

    pub fn run(criterion: &mut Criterion) -> Result<()> {
        let device = Device::new(0)?;
        let timer = Timer::new(&device)?;
        let stream = &timer.stream;
        let peer = CublasLt::new(&device)?;
        let values = random_activations(1, 4_194_301, 1);
        let source = Tensor::from_host(&device, Dtype::Bf16, 1, values.len(), &values)?;
        let mut group = criterion.benchmark_group("gemm, bf16");
        for (m, n, k) in SHAPES {
            let pairs = (3 * device.info().l2_bytes as usize).div_ceil((m + n) * k * Dtype::BYTES).max(3);
            let a = (0..pairs).map(|_| source.repeated(m, k)).collect::<Result<Vec<_>>>()?;
            let w = (0..pairs).map(|_| source.repeated(n, k)).collect::<Result<Vec<_>>>()?;
            let bias = source.repeated(1, n)?;
            let mut c = Tensor::poisoned(&device, Dtype::Bf16, m, n)?;
            group.throughput(Throughput::Elements((2 * m * n * k) as u64));
            let mut measure = |name: &str, graph: Graph<'_>| {
                group.bench_function(BenchmarkId::new(name, format!("{m}x{n}x{k}")), |bencher| {
                    bencher.iter_custom(|products| timer.launches(&graph, pairs, products));
                });
            };
            let operands: Vec<(&Tensor, &Tensor)> = a.iter().zip(&w).collect();
            let (last_a, last_w) = *operands.last().expect("there are operands");
            for gelu in [false, true] {
                let suffix = if gelu { " bias+gelu_new" } else { "" };
                let then = gelu.then_some((&bias, HiddenAct::GeluNew));
                let verify = |name: &str, c: &Tensor| spot::product(name, last_a, last_w, then, c);
                let products: Vec<Product<'_>> = operands
                    .iter()
                    .map(|&(a, w)| {
                        let plain = Product::new(a, w);
                        let fused = Epilogue::Activation(HiddenAct::GeluNew);
                        if gelu { Product { bias: Some(&bias), epilogue: fused, ..plain } } else { plain }
                    })
                    .collect();
                let name = format!("paf-cuda{suffix}");
                c.poison()?;
                kernel::record_gemms(stream, &products, &mut c)?.launch(stream)?;
                verify(&name, &c)?;
                measure(&name, kernel::record_gemms(stream, &products, &mut c)?);
                if let Some(peer) = &peer {
                    let epilogue = if gelu { PeerEpilogue::GeluBias } else { PeerEpilogue::None };
                    let name = format!("cuBLASLt{suffix}");
                    c.poison()?;
                    peer.record(stream, &operands, &bias, epilogue, &mut c)?.launch(stream)?;
                    verify(&name, &c)?;
                    measure(&name, peer.record(stream, &operands, &bias, epilogue, &mut c)?);
                }
            }
        }
        group.finish();
        Ok(())
    }
}

fn gemm(criterion: &mut Criterion) {
    #[cfg(feature = "cuda")]
    if common::on_gpu(criterion, gpu::run) {
        return;
    }
    let _ = criterion;
    eprintln!("{}", common::NO_DEVICE);
}

criterion_group!(benches, gemm);
criterion_main!(benches);
