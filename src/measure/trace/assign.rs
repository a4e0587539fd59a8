//! Which record of CUPTI's is which launch.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::gpu::cupti::Record;
use crate::gpu::observe::Launch;

/// How records were put beside launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// Calls are numbered in their order.
    Calls,
    /// Nodes of a graph are numbered in the order in which they were captured.
    Nodes,
    /// Of launches of the same kernel in the same grid, the one that was launched first is the one that began first.
    Starts,
}

impl By {
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Calls => "the order of the calls",
            Self::Nodes => "the order of the graph's nodes",
            Self::Starts => "kernel, grid, and the order of the starts among those with the same",
        }
    }
}

/// What tells launches apart: name, grid, threads and shared memory.
type Key<'a> = (&'a str, [usize; 2], u32, u32);

fn of_launch(launch: &Launch) -> Key<'_> {
    let kernel = &launch.kernel;
    // The module's name, which comes first, is the file's alone.
    let name = kernel.name.rsplit(' ').next().unwrap_or_default();
    (name, kernel.grid, kernel.threads, kernel.shared_bytes)
}

fn of_record(record: &Record) -> Key<'_> {
    (&record.name, record.grid, record.threads, record.shared_bytes)
}

/// The record of each launch, in their order. `graph`: they were launched by one call, as nodes of a graph.
///
/// # Errors
/// [`Error::Verification`] if there are more or fewer records than launches, or others.
pub(super) fn assign(launches: &[Launch], records: &[Record], graph: bool) -> Result<(Vec<Record>, By)> {
    if launches.len() != records.len() {
        let text = format!("CUPTI recorded {} kernels, {} were launched", records.len(), launches.len());
        return Err(Error::Verification(text));
    }
    let mut ordered = records.to_vec();
    let by = if graph { By::Nodes } else { By::Calls };
    let number = |record: &Record| if graph { record.graph_node } else { u64::from(record.correlation) };
    ordered.sort_by_key(number);
    let numbered = ordered.windows(2).all(|pair| number(&pair[0]) < number(&pair[1]));
    if numbered && launches.iter().zip(&ordered).all(|(launch, record)| of_launch(launch) == of_record(record)) {
        return Ok((ordered, by));
    }
    let mut by_key: BTreeMap<Key<'_>, Vec<&Record>> = BTreeMap::new();
    let mut started: Vec<_> = records.iter().collect();
    // The last first, since each is taken from the end.
    started.sort_by_key(|record| std::cmp::Reverse(record.start_ns));
    for record in started {
        by_key.entry(of_record(record)).or_default().push(record);
    }
    let taken = launches.iter().map(|launch| {
        let of_key = by_key.get_mut(&of_launch(launch)).and_then(Vec::pop);
        of_key.cloned().ok_or_else(|| {
            let (name, grid, threads, shared) = of_launch(launch);
            Error::Verification(format!(
                "CUPTI recorded no kernel {name} of {grid:?} blocks, {threads} threads and {shared} bytes of shared memory for {} of \
                 layer {}",
                launch.part.name(),
                launch.layer
            ))
        })
    });
    Ok((taken.collect::<Result<_>>()?, By::Starts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::LayerProduct;
    use crate::gpu::observe::{Kernel, Part};

    fn launch(name: &str, x: usize, product: LayerProduct) -> Launch {
        let name = format!("gemm_sm90_bf16 {name}");
        let kernel =
            Kernel { name, grid: [x, 1], cluster: 1, threads: 384, shared_bytes: 9, registers: 168, overlap: false };
        Launch { kernel, layer: 0, part: Part::Product(product), shape: String::new(), stream: "caller" }
    }

    fn record(name: &str, x: usize, start_ns: u64, correlation: u32, graph_node: u64) -> Record {
        let name = name.into();
        let end_ns = start_ns + 5;
        Record {
            name,
            start_ns,
            end_ns,
            stream: 1,
            correlation,
            graph_node,
            grid: [x, 1],
            threads: 384,
            shared_bytes: 9,
        }
    }

    fn starts(found: &[Record]) -> Vec<u64> {
        found.iter().map(|record| record.start_ns).collect()
    }

    #[test]
    fn calls_and_nodes_are_in_the_order_of_the_launches() {
        use LayerProduct::{Qkv, W1, W2, Wo};
        // Wo and W2 look the same, and W2, on the other stream, began first.
        let launches = [launch("a", 8, Qkv), launch("b", 4, Wo), launch("c", 8, W1), launch("b", 4, W2)];
        let records =
            [record("a", 8, 0, 5, 70), record("c", 8, 1, 7, 72), record("b", 4, 2, 8, 73), record("b", 4, 3, 6, 71)];
        for (graph, expected) in [(false, By::Calls), (true, By::Nodes)] {
            let (found, by) = assign(&launches, &records, graph).unwrap();
            assert_eq!((starts(&found), by), (vec![0, 3, 1, 2], expected));
        }
    }

    #[test]
    fn without_an_order_kernels_of_a_kind_are_in_that_of_their_starts() {
        let launches =
            [launch("a", 8, LayerProduct::Qkv), launch("b", 4, LayerProduct::Wo), launch("b", 4, LayerProduct::W2)];
        let records = [record("b", 4, 9, 0, 1), record("a", 8, 1, 0, 3), record("b", 4, 4, 0, 2)];
        let (found, by) = assign(&launches, &records, true).unwrap();
        assert_eq!((starts(&found), by), (vec![1, 4, 9], By::Starts));
        // Calls that have no number, though their starts would do for one.
        let records = [record("a", 8, 1, 0, 0), record("b", 4, 4, 0, 0), record("b", 4, 9, 0, 0)];
        assert_eq!(assign(&launches, &records, true).unwrap().1, By::Starts);
    }

    #[test]
    fn more_fewer_and_other_kernels_are_refused() {
        let launches = [launch("a", 8, LayerProduct::Qkv), launch("b", 4, LayerProduct::Wo)];
        let refused = |records: &[Record]| assign(&launches, records, false).unwrap_err().to_string();
        let one = refused(&[record("a", 8, 0, 1, 0)]);
        assert!(one.contains("1 kernels, 2 were launched"), "{one}");
        let other = refused(&[record("a", 8, 0, 1, 0), record("b", 5, 0, 2, 0)]);
        assert!(other.contains("no kernel b of [4, 1] blocks") && other.contains("wo of layer 0"), "{other}");
    }
}
