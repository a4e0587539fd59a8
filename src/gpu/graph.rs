//! A forward call recorded as a CUDA graph.

use std::marker::PhantomData;

use cudarc::driver::{result, sys};

use super::device::{Device, Stream};
use crate::error::{Error, Result};

/// A recorded forward call. It keeps its operands borrowed, so that none can go away or change owner under it.
#[derive(Debug)]
pub struct Graph<'a> {
    device: Device,
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
    operands: PhantomData<&'a mut ()>,
}

/// How many dependencies a graph has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edges {
    /// All of them.
    pub all: usize,
    /// Those under which a kernel may begin before the one that it depends on has ended (programmatic dependent launch).
    pub programmatic: usize,
}

// SAFETY: both are handles that the driver lets any thread use, one at a time; launching takes `&self`, which the driver
// allows as well since the launches of one executable are ordered.
unsafe impl Send for Graph<'_> {}

impl Graph<'_> {
    /// Captures what `enqueue` launches on `stream`, and on streams that fork from it and join it again.
    pub(super) fn record(stream: &Stream, enqueue: impl FnOnce() -> Result<()>) -> Result<Self> {
        let device = stream.device().clone();
        device.enter()?;
        let guard = Device::while_not_capturing();
        // Thread-local: other threads may allocate meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is live.
        device.check("beginning a capture", unsafe { result::stream::begin_capture(stream.raw(), mode) })?;
        let enqueued = enqueue();
        // The capture ends whatever happened, or the stream would stay unusable.
        // SAFETY: the stream is live and capturing.
        let ended = unsafe { result::stream::end_capture(stream.raw()) };
        drop(guard);
        let graph = match (enqueued, ended) {
            (Ok(()), ended) => device.check("ending a capture", ended)?,
            (Err(error), ended) => {
                if let Ok(graph) = ended
                    && !graph.is_null()
                {
                    // SAFETY: made just above, used nowhere.
                    let _ = unsafe { result::graph::destroy(graph) };
                }
                return Err(error);
            }
        };
        if graph.is_null() {
            return Err(Error::Cuda { operation: "ending a capture", code: 0, text: "the graph is empty".into() });
        }
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph is live; the driver writes one handle.
        let instantiated = unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) }.result();
        if let Err(error) = device.check("instantiating a graph", instantiated) {
            // SAFETY: as above.
            let _ = unsafe { result::graph::destroy(graph) };
            return Err(error);
        }
        Ok(Self { device, graph, executable, operands: PhantomData })
    }

    /// Enqueues the recorded call on `stream`, which must be of the same device.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for another device's stream; [`Error::Cuda`], [`Error::ContextLost`].
    pub fn launch(&self, stream: &Stream) -> Result<()> {
        if !stream.device().same_as(&self.device) {
            return Err(Error::mismatch(
                "Graph::launch",
                "device of the stream",
                stream.device().info().ordinal,
                format!("the graph's device object (ordinal {})", self.device.info().ordinal),
            ));
        }
        self.device.enter()?;
        // SAFETY: the executable is live, and its operands are borrowed for as long as it is.
        let launched = unsafe { result::graph::launch(self.executable, stream.raw()) };
        self.device.check("launching a graph", launched)
    }

    /// Number of kernels (nodes) in the graph.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::ContextLost`].
    pub fn nodes(&self) -> Result<usize> {
        self.device.enter()?;
        let mut count = 0;
        // SAFETY: with no array given, the driver only writes the count.
        let counted = unsafe { sys::cuGraphGetNodes(self.graph, std::ptr::null_mut(), &mut count) };
        self.device.check("counting a graph's nodes", counted.result())?;
        Ok(count)
    }

    /// Dependencies between its nodes: one less than the nodes for a single chain, more where branches join.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::ContextLost`].
    pub fn edges(&self) -> Result<Edges> {
        self.device.enter()?;
        let mut count = 0;
        let none = std::ptr::null_mut();
        // SAFETY: with no arrays given, the driver only writes the count.
        let counted = unsafe { sys::cuGraphGetEdges_v2(self.graph, none, none, std::ptr::null_mut(), &mut count) };
        self.device.check("counting a graph's edges", counted.result())?;
        let (mut from, mut to) = (vec![std::ptr::null_mut(); count], vec![std::ptr::null_mut(); count]);
        let plain = sys::CUgraphEdgeData { from_port: 0, to_port: 0, type_: 0, reserved: [0; 5] };
        let mut data = vec![plain; count];
        // SAFETY: three arrays of `count` elements.
        let listed = unsafe {
            sys::cuGraphGetEdges_v2(self.graph, from.as_mut_ptr(), to.as_mut_ptr(), data.as_mut_ptr(), &mut count)
        };
        self.device.check("listing a graph's edges", listed.result())?;
        let programmatic = sys::CUgraphDependencyType::CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC as u8;
        let programmatic = data.iter().filter(|data| data.type_ == programmatic).count();
        Ok(Edges { all: count, programmatic })
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        // Launched work may still be running: wait, so that the operands' borrows end after it.
        if self.device.synchronize().is_ok() {
            // SAFETY: made in `record`, destroyed only here.
            unsafe {
                let _ = result::graph::exec_destroy(self.executable);
                let _ = result::graph::destroy(self.graph);
            }
        }
    }
}
