//! Products of a transformer layer under criterion: the planned kernel beside cuBLASLt where that is installed, with and
//! without bias and GELU, each verified first. Device time of graphs that go through distinct operands, so that weights come from memory.
//! `paf kernels gemm` measures more shapes and variants, in turns. Without a GPU there is nothing to measure.

use criterion::{Criterion, criterion_group, criterion_main};

#[cfg(feature = "cuda")]
mod gpu {
    use std::time::Duration;

    use criterion::{BenchmarkId, Criterion, Throughput};
    use paf_cuda::gpu::kernel::{self, Epilogue, Product};
    use paf_cuda::gpu::peer::{CublasLt, PeerEpilogue};
    use paf_cuda::gpu::{Device, Event, Graph, Stream, Tensor};
    use paf_cuda::measure::spot;
    use paf_cuda::weights::random_activations;
    use paf_cuda::{Dtype, HiddenAct, Result};

    const SHAPES: [(usize, usize, usize); 5] =
        [(1, 4096, 4096), (64, 1024, 4096), (512, 3072, 1024), (2048, 4096, 1024), (8192, 4096, 4096)];

    pub fn run(criterion: &mut Criterion) -> Result<()> {
        let device = Device::new(0)?;
        let (stream, start, end) = (Stream::new(&device)?, Event::new_timing(&device)?, Event::new_timing(&device)?);
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
                    bencher.iter_custom(|products| {
                        let time = || -> Result<Duration> {
                            let graphs = products.div_ceil(pairs as u64);
                            start.record(&stream)?;
                            (0..graphs).try_for_each(|_| graph.launch(&stream))?;
                            end.record(&stream)?;
                            end.synchronize()?;
                            let us = end.elapsed_us_since(&start)? / (graphs * pairs as u64) as f64;
                            Ok(Duration::from_secs_f64(us * products as f64 * 1e-6))
                        };
                        time().expect("a CUDA call failed")
                    });
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
                kernel::record_gemms(&stream, &products, &mut c)?.launch(&stream)?;
                verify(&name, &c)?;
                measure(&name, kernel::record_gemms(&stream, &products, &mut c)?);
                if let Some(peer) = &peer {
                    let epilogue = if gelu { PeerEpilogue::GeluBias } else { PeerEpilogue::None };
                    let name = format!("cuBLASLt{suffix}");
                    c.poison()?;
                    peer.record(&stream, &operands, &bias, epilogue, &mut c)?.launch(&stream)?;
                    verify(&name, &c)?;
                    measure(&name, peer.record(&stream, &operands, &bias, epilogue, &mut c)?);
                }
            }
        }
        group.finish();
        Ok(())
    }
}

fn gemm(criterion: &mut Criterion) {
    #[cfg(feature = "cuda")]
    match paf_cuda::gpu::device_count() {
        Ok(0) | Err(paf_cuda::Error::NoDriver) => {}
        _ => return gpu::run(criterion).expect("the GPU does not work"),
    }
    let _ = criterion;
    eprintln!("no CUDA device: nothing to measure");
}

criterion_group!(benches, gemm);
criterion_main!(benches);
