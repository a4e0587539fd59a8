//! Names of the ways to compute attention.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// One way to compute attention. Written `sm80:rows128`, `sm90:rows192`, `sm90:rows64:half`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttentionVariant {
    /// The portable kernel.
    Sm80 {
        /// Query rows of a block; which there are depends on the head's width (see
        /// [`attention_variants`](crate::gpu::kernel::attention_variants)).
        rows: usize,
    },
    /// Hopper's own.
    Sm90 {
        /// Query rows of a block.
        rows: usize,
        /// By halves: one block on each multiprocessor, small enough for one of a product beside it (tile `128x128h`), begun when the kernel
        /// before has ended, whatever `overlap` says. Of 64 rows and heads of 64; worth it in `fused`, from about 500 tokens
        /// on in short sequences.
        half: bool,
    },
}

/// What the name of such a variant ends in.
const HALF: &str = ":half";

impl fmt::Display for AttentionVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sm80 { rows } => write!(f, "sm80:rows{rows}"),
            Self::Sm90 { rows, half } => write!(f, "sm90:rows{rows}{}", if *half { HALF } else { "" }),
        }
    }
}

impl FromStr for AttentionVariant {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).ok_or_else(|| Error::InvalidConfig {
            field: "variant",
            got: text.to_owned(),
            expected: "sm80:rowsN, sm90:rowsN or sm90:rowsN:half with N the query rows of a block, e.g. sm80:rows128"
                .into(),
        })
    }
}

fn parse(text: &str) -> Option<AttentionVariant> {
    let (kernel, rows) = text.split_once(":rows")?;
    let (rows, half) = rows.strip_suffix(HALF).map_or((rows, false), |rows| (rows, true));
    let rows = rows.parse().ok()?;
    match (kernel, half) {
        ("sm80", false) => Some(AttentionVariant::Sm80 { rows }),
        ("sm90", half) => Some(AttentionVariant::Sm90 { rows, half }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for rows in [32, 64, 128] {
            let hopper = [false, true].map(|half| AttentionVariant::Sm90 { rows, half });
            for variant in hopper.into_iter().chain([AttentionVariant::Sm80 { rows }]) {
                assert_eq!(variant.to_string().parse::<AttentionVariant>().unwrap(), variant);
            }
        }
        for bad in [
            "",
            "sm80",
            "sm80:rows",
            "sm80:128",
            "rows128",
            "sm80:rowsx",
            "sm70:rows64",
            "sm80:rows64:half",
            "sm90:half",
        ] {
            assert!(bad.parse::<AttentionVariant>().unwrap_err().to_string().contains("sm80:rows128"), "{bad}");
        }
    }
}
