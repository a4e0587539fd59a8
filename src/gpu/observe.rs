//! What forward calls launch, kernel by kernel, for whoever wants to see it. Where nobody does, a kernel costs two looks at a flag of
//! its thread more: one for what it is to do, one at its launch.

use std::cell::RefCell;

use super::device::{Event, Stream};
use super::plan::LayerProduct;
use crate::error::Result;

/// The kernel of [`Stream::hold_back`], which is no part of a call.
pub(crate) const DELAY: &str = "delay";

/// What a kernel does in its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A product.
    Product(LayerProduct),
    /// The rotation of queries and keys, where the product before it does not do that.
    Rotation,
    /// Attention.
    Attention,
    /// The product of gate and inner layer.
    Gate,
    /// Residual sum, norms, or both.
    Join,
}

impl Part {
    /// As [`LayerProduct::name`] names products; `rotation`, `attention`, `gate` or `join`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Product(product) => product.name(),
            Self::Rotation => "rotation",
            Self::Attention => "attention",
            Self::Gate => "gate",
            Self::Join => "join",
        }
    }
}

/// A kernel, as it was launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Module and name, e.g. `gemm_sm90_bf16 gemm_256x128`.
    pub name: String,
    /// Blocks, along x and y.
    pub grid: [usize; 2],
    /// Blocks of a cluster.
    pub cluster: usize,
    /// Threads of a block.
    pub threads: u32,
    /// Shared memory of a block that the launch asks for, bytes.
    pub shared_bytes: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Whether it may begin before the kernel before it on its stream has ended (programmatic dependent launch).
    pub overlap: bool,
}

/// One launch of a forward call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// What was launched.
    pub kernel: Kernel,
    /// The layer that it belongs to, from 0 on.
    pub layer: usize,
    /// What it does there.
    pub part: Part,
    /// Dimensions of what it does, e.g. of a product M × N × K.
    pub shape: String,
    /// `caller`, `attention` or `ffn`.
    pub stream: &'static str,
}

/// When a kernel ran, µs from a common moment on.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "said above")]
pub struct Span {
    pub start_us: f64,
    pub end_us: f64,
}

#[derive(Default)]
struct Observer {
    launches: Vec<Launch>,
    /// Around each of them, if they are timed.
    events: Option<Vec<[Event; 2]>>,
    streams: Vec<(usize, &'static str)>,
    layer: usize,
    /// What the next kernel does, until it is launched.
    part: Option<(Part, String)>,
}

thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// Ends the observation, however the observed call ends: what was observed around it goes on.
struct Observed {
    around: Option<Observer>,
}

impl Observed {
    fn begin(observer: Observer) -> Self {
        Self { around: replace(Some(observer)) }
    }

    fn take(&self) -> Observer {
        replace(None).unwrap_or_default()
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        replace(self.around.take());
    }
}

/// The observer until now. Where the thread ends, and there is no place for one any more, nobody observes.
fn replace(observer: Option<Observer>) -> Option<Observer> {
    OBSERVER.try_with(|place| place.replace(observer)).ok().flatten()
}

/// What `call` launches from this thread on, in the order of the launches: a forward call, or the capture of one. Of observations
/// within each other the innermost one sees it.
///
/// # Errors
/// What `call` gives.
pub fn launches<T>(call: impl FnOnce() -> Result<T>) -> Result<(T, Vec<Launch>)> {
    let observed = Observed::begin(Observer::default());
    let done = call()?;
    Ok((done, observed.take().launches))
}

/// The same, with the time of each kernel from events around it, counted from a moment before the first on `stream`. A kernel that
/// follows an event waits for all before it on its stream, so none begins early: streams run beside each other as ever, kernels of one
/// stream do not. Waits for the device.
///
/// # Errors
/// What `call` gives, which may not be a capture; [`Error::Cuda`](crate::Error::Cuda), [`Error::ContextLost`](crate::Error::ContextLost).
pub fn timed(stream: &Stream, call: impl FnOnce() -> Result<()>) -> Result<Vec<(Launch, Span)>> {
    let start = Event::new_timing(stream.device())?;
    start.record(stream)?;
    let observed = Observed::begin(Observer { events: Some(Vec::new()), ..Observer::default() });
    call()?;
    let Observer { launches, events, .. } = observed.take();
    stream.device().synchronize()?;
    let spans = events.unwrap_or_default().into_iter().map(|[first, last]| {
        Ok(Span { start_us: first.elapsed_us_since(&start)?, end_us: last.elapsed_us_since(&start)? })
    });
    launches.into_iter().zip(spans).map(|(launch, span)| Ok((launch, span?))).collect()
}

/// Tells an observer about the call: its streams.
pub(super) fn streams<const N: usize>(streams: [(&Stream, &'static str); N]) {
    with(|observer| observer.streams = streams.map(|(stream, name)| (stream.raw().addr(), name)).to_vec());
}

/// The layer that what is launched from now on belongs to.
pub(super) fn layer(index: usize) {
    with(|observer| observer.layer = index);
}

/// What is launched next.
pub(super) fn next(part: Part, shape: impl FnOnce() -> String) {
    with(|observer| observer.part = Some((part, shape())));
}

/// Launches a kernel, and notes it if it is one of a forward call that is observed.
pub(super) fn launching(
    stream: &Stream,
    kernel: impl FnOnce() -> Kernel,
    launch: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let Some(timed) = with(|observer| observer.events.is_some()) else { return launch() };
    let event = || {
        let event = Event::new_timing(stream.device())?;
        event.record(stream)?;
        Ok(event)
    };
    let first = timed.then(event).transpose()?;
    launch()?;
    let last = timed.then(event).transpose()?;
    with(|observer| {
        let Some((part, shape)) = observer.part.take() else { return };
        let own = observer.streams.iter().find(|(raw, _)| *raw == stream.raw().addr());
        let name = own.map_or("caller", |(_, name)| name);
        observer.launches.push(Launch { kernel: kernel(), layer: observer.layer, part, shape, stream: name });
        if let (Some(events), Some(first), Some(last)) = (&mut observer.events, first, last) {
            events.push([first, last]);
        }
    });
    Ok(())
}

/// `None` if nobody observes.
fn with<T>(note: impl FnOnce(&mut Observer) -> T) -> Option<T> {
    OBSERVER.try_with(|observer| observer.borrow_mut().as_mut().map(note)).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn an_observation_ends_with_its_call() {
        let is_on = || OBSERVER.with_borrow(Option::is_some);
        let (inside, seen) = launches(|| Ok(is_on())).unwrap();
        assert!(inside && seen.is_empty() && !is_on());
        let failed = launches(|| -> Result<()> { Err(Error::NoDriver) });
        assert!(failed.is_err() && !is_on());
        // Where nobody looks, nobody is asked for a shape.
        next(Part::Join, || unreachable!());
    }

    #[test]
    fn an_observation_around_another_goes_on() {
        let ((), seen) = launches(|| {
            layer(3);
            let failed = launches(|| -> Result<()> { Err(Error::NoDriver) });
            assert!(failed.is_err());
            launches(|| {
                layer(5);
                Ok(())
            })?;
            assert_eq!(with(|observer| observer.layer), Some(3));
            Ok(())
        })
        .unwrap();
        assert!(seen.is_empty() && with(|_| ()).is_none());
    }

    #[test]
    fn a_thread_that_ends_is_not_observed() {
        struct AtTheEnd(std::sync::mpsc::Sender<bool>);
        impl Drop for AtTheEnd {
            fn drop(&mut self) {
                let observer = Observed::begin(Observer::default());
                next(Part::Join, || unreachable!());
                self.0.send(with(|_| ()).is_none() && observer.take().launches.is_empty()).unwrap();
            }
        }
        thread_local!(static LAST: RefCell<Option<AtTheEnd>> = const { RefCell::new(None) });
        let (sender, receiver) = std::sync::mpsc::channel();
        // The one that is used first goes last.
        std::thread::spawn(move || {
            LAST.set(Some(AtTheEnd(sender)));
            with(|_| ());
            let _ = launches(|| Ok(()));
        })
        .join()
        .unwrap();
        assert_eq!(receiver.recv(), Ok(true));
    }
}
