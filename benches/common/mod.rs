//! What the benchmarks share: whether there is a GPU to measure, and device time as criterion asks for it.
#![allow(dead_code)]

/// What a benchmark of kernels says where there is no GPU.
pub const NO_DEVICE: &str = "no CUDA device: nothing to measure";

#[cfg(feature = "cuda")]
pub use gpu::{Timer, on_gpu};

#[cfg(feature = "cuda")]
mod gpu {
    use std::time::Duration;

    use criterion::Criterion;
    use paf_cuda::gpu::{Device, Event, Graph, Stream, device_count};
    use paf_cuda::{Error, Result};

    /// Runs what is to be measured on a GPU; false where there is none.
    pub fn on_gpu(criterion: &mut Criterion, run: impl FnOnce(&mut Criterion) -> Result<()>) -> bool {
        // A GPU that is there and does not work is no reason to measure nothing.
        let is_there = !matches!(device_count(), Ok(0) | Err(Error::NoDriver));
        if is_there {
            run(criterion).expect("the GPU does not work");
        }
        is_there
    }

    /// Times graphs on a stream of its own.
    pub struct Timer {
        pub stream: Stream,
        start: Event,
        end: Event,
    }

    impl Timer {
        pub fn new(device: &Device) -> Result<Self> {
            let (start, end) = (Event::new_timing(device)?, Event::new_timing(device)?);
            Ok(Self { stream: Stream::new(device)?, start, end })
        }

        /// Device time of so many replays in a row, µs, after one that is not timed, under which the first of them is launched.
        pub fn replays_us(&self, graph: &Graph<'_>, replays: u64) -> Result<f64> {
            graph.launch(&self.stream)?;
            self.start.record(&self.stream)?;
            (0..replays).try_for_each(|_| graph.launch(&self.stream))?;
            self.end.record(&self.stream)?;
            self.end.synchronize()?;
            self.end.elapsed_us_since(&self.start)
        }

        /// Device time of so many of the launches of which a graph holds `per_graph`: that of whole replays, in proportion.
        pub fn launches(&self, graph: &Graph<'_>, per_graph: usize, launches: u64) -> Duration {
            let replays = launches.div_ceil(per_graph as u64);
            let us = self.replays_us(graph, replays).expect("a CUDA call failed") / (replays * per_graph as u64) as f64;
            Duration::from_secs_f64(us * launches as f64 * 1e-6)
        }
    }
}
