//! Names of the ways to compute a product.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;
use crate::gpu::tiles::{GEMM_SM80_TILES, GEMM_SM90_TILES};

/// One way to compute a product: kernel, tile, and what else it leaves open. Written `sm80:128x128`,
/// `sm90:256x128:share2x1:stages4`, `sm90:128x64:split4:stages8`, `sm90:128x64:parts3:stages8` or
/// `sm90:128x128:parts4-share2x1:stages6`: tokens × columns of C a tile; how many neighbouring blocks along columns × tokens share
/// loads, how many share K, or in how many parts K is computed apart; stages of 64 elements along K in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GemmVariant {
    /// The portable kernel.
    Sm80 {
        /// Row of the kernel's table of tiles.
        tile: usize,
    },
    /// The kernel for Hopper.
    Sm90 {
        /// Row of the kernel's table of tiles.
        tile: usize,
        /// What the blocks of a cluster have in common.
        cluster: Cluster,
        /// Stages in flight.
        stages: usize,
    },
}

/// What blocks of one cluster have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cluster {
    /// `n × m` neighbouring tiles: what they read of A and W is loaded once.
    Share {
        /// Blocks along the columns of C.
        n: usize,
        /// Blocks along its rows.
        m: usize,
    },
    /// K of one tile.
    Split(usize),
    /// As `Share`, and parts of K are tiles of their own, which leave their sums, in fp32, to the join that follows.
    Parts {
        /// How many.
        parts: usize,
        /// Blocks along the columns of C.
        n: usize,
        /// Blocks along its rows.
        m: usize,
    },
}

impl Cluster {
    /// Blocks that share operands: along columns of C, along its rows.
    pub(crate) const fn shared(self) -> (usize, usize) {
        match self {
            Self::Share { n, m } | Self::Parts { n, m, .. } => (n, m),
            Self::Split(_) => (1, 1),
        }
    }

    /// Blocks that share K.
    pub(crate) const fn split(self) -> usize {
        match self {
            Self::Share { .. } | Self::Parts { .. } => 1,
            Self::Split(split) => split,
        }
    }

    /// Parts of K whose sums the join adds; 1 where C is complete.
    pub(crate) const fn parts(self) -> usize {
        match self {
            Self::Share { .. } | Self::Split(_) => 1,
            Self::Parts { parts, .. } => parts,
        }
    }

    /// Blocks of the cluster.
    pub(crate) const fn blocks(self) -> usize {
        let (n, m) = self.shared();
        n * m * self.split()
    }
}

impl fmt::Display for GemmVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A number that is none can get here in the error message that says so.
            Self::Sm80 { tile } => write!(f, "sm80:{}", GEMM_SM80_TILES.get(*tile).map_or("?", |tile| tile.name)),
            Self::Sm90 { tile, cluster, stages } => {
                let tile = GEMM_SM90_TILES.get(*tile).map_or("?", |tile| tile.name);
                match cluster {
                    Cluster::Share { n, m } => write!(f, "sm90:{tile}:share{n}x{m}:stages{stages}"),
                    Cluster::Split(split) => write!(f, "sm90:{tile}:split{split}:stages{stages}"),
                    Cluster::Parts { parts, n: 1, m: 1 } => write!(f, "sm90:{tile}:parts{parts}:stages{stages}"),
                    Cluster::Parts { parts, n, m } => write!(f, "sm90:{tile}:parts{parts}-share{n}x{m}:stages{stages}"),
                }
            }
        }
    }
}

impl FromStr for GemmVariant {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).ok_or_else(|| Error::InvalidConfig {
            field: "variant",
            got: text.to_owned(),
            expected: format!(
                "sm80:TILE with TILE one of {}, or sm90:TILE:shareNxM:stagesS, sm90:TILE:splitN:stagesS or \
                 sm90:TILE:partsN[-shareNxM]:stagesS with TILE one of {}",
                GEMM_SM80_TILES.map(|tile| tile.name).join(", "),
                GEMM_SM90_TILES.map(|tile| tile.name).join(", ")
            ),
        })
    }
}

fn parse(text: &str) -> Option<GemmVariant> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts[..] {
        ["sm80", name] => Some(GemmVariant::Sm80 { tile: GEMM_SM80_TILES.iter().position(|tile| tile.name == name)? }),
        ["sm90", name, cluster, stages] => {
            let shared = |shape: &str| {
                let (n, m) = shape.strip_prefix("share")?.split_once('x')?;
                Some((n.parse().ok()?, m.parse().ok()?))
            };
            let cluster = if let Some(split) = cluster.strip_prefix("split") {
                Cluster::Split(split.parse().ok()?)
            } else if let Some(parts) = cluster.strip_prefix("parts") {
                let (parts, (n, m)) = match parts.split_once('-') {
                    Some((parts, shape)) => (parts, shared(shape)?),
                    None => (parts, (1, 1)),
                };
                Cluster::Parts { parts: parts.parse().ok()?, n, m }
            } else {
                let (n, m) = shared(cluster)?;
                Cluster::Share { n, m }
            };
            Some(GemmVariant::Sm90 {
                tile: GEMM_SM90_TILES.iter().position(|tile| tile.name == name)?,
                cluster,
                stages: stages.strip_prefix("stages")?.parse().ok()?,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let names = [
            "sm80:128x128",
            "sm90:256x128:share2x1:stages4",
            "sm90:128x64:split4:stages8",
            "sm90:16x64:parts3:stages2",
            "sm90:128x128:parts4-share2x1:stages6",
        ];
        for name in names {
            assert_eq!(name.parse::<GemmVariant>().unwrap().to_string(), name);
        }
        assert_eq!(GemmVariant::Sm80 { tile: 99 }.to_string(), "sm80:?");
        for bad in ["", "sm80:7x7", "sm90:256x128", "sm90:256x128:share2:stages4", "sm90:256x128:split:stages4"] {
            assert!(bad.parse::<GemmVariant>().unwrap_err().to_string().contains("256x128"), "{bad}");
        }
    }
}
