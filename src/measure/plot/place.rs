//! Where things go: along the axis without overlap, and how wide text is where no font can be asked.

/// Width of `text`, px, in a wide sans-serif (DejaVu, Verdana); other fonts need less.
pub(super) fn text_width(text: &str, size: f64, bold: bool) -> f64 {
    text.chars().count() as f64 * size * if bold { 0.7 } else { 0.62 }
}

/// The least and the largest of `values`; 1 and 1 if there are none.
pub(super) fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.map(|value| (value, value)).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap_or((1.0, 1.0))
}

/// The logarithmic axis of tokens.
#[derive(Debug, PartialEq)]
pub(super) struct TokenAxis {
    /// Tokens at its ends.
    pub(super) ends: (f64, f64),
    /// Its length, px.
    pub(super) width: i32,
}

impl TokenAxis {
    const LEAST_WIDTH: f64 = 820.0;
    /// It gets longer than that only if the boxes do not fit otherwise.
    const MOST_WIDTH: f64 = 1600.0;
    /// Of a factor of two, so that the axis of few different shapes has some labels.
    const MOST_OCTAVE_WIDTH: f64 = 200.0;

    /// An axis for panels of boxes, each with its tokens, ascending, and its width: long enough that boxes of the same
    /// tokens lie around their place and push no others away, if that can be.
    pub(super) fn new(panels: &[Vec<(usize, f64)>]) -> Self {
        let (mut octave, mut end, mut full) = (0f64, 0f64, 0f64);
        for boxes in panels {
            let groups: Vec<(f64, f64)> = boxes
                .chunk_by(|a, b| a.0 == b.0)
                .map(|group| (group[0].0 as f64, group.iter().map(|(_, width)| width).sum()))
                .collect();
            for pair in groups.windows(2) {
                octave = octave.max((pair[0].1 + pair[1].1) / 2.0 / (pair[1].0 / pair[0].0).log2());
            }
            end = groups.iter().map(|(_, width)| width / 2.0).fold(end, f64::max);
            full = full.max(groups.iter().map(|(_, width)| width).sum());
        }
        let (least, most) = extent(panels.iter().flatten().map(|&(tokens, _)| tokens as f64));
        let octaves = (most / least).log2();
        let wanted = octave.min(Self::MOST_OCTAVE_WIDTH) * octaves + 2.0 * end;
        let width = wanted.clamp(Self::LEAST_WIDTH, Self::MOST_WIDTH).max(full).ceil();
        let octave = ((width - 2.0 * end).max(1.0) / octaves).min(Self::MOST_OCTAVE_WIDTH);
        let (middle, half) = ((least * most).sqrt(), (width / 2.0 / octave).exp2());
        Self { ends: (middle / half, middle * half), width: width as i32 }
    }

    /// How many labels of this size there is room for.
    pub(super) fn most_labels(&self, size: f64) -> usize {
        let widest = text_width(&format!("{:.0}", self.ends.1), size, false);
        (f64::from(self.width) / (widest + 2.0 * size)) as usize
    }
}

/// Places boxes of `widths` with their centres as near as can be to `wanted`, which ascends: in that order, without
/// overlap, within `left..right`; boxes that want the same place lie around it. If they need more room than there is, they
/// begin at `left`.
pub(super) fn side_by_side(wanted: &[f64], widths: &[f64], left: f64, right: f64) -> Vec<f64> {
    // Less the distance from the first box that it needs at least, each place must be no less than the one before: the
    // least-squares answer is isotonic regression, by pooling neighbours that are in the wrong order.
    let mut offsets = Vec::with_capacity(widths.len());
    let mut end = -widths.first().map_or(0.0, |first| first / 2.0);
    for width in widths {
        offsets.push(end + width / 2.0);
        end += width;
    }
    let mut pools: Vec<(f64, usize)> = Vec::new();
    for (place, offset) in wanted.iter().zip(&offsets) {
        let mut pool = (place - offset, 1);
        while let Some(&(sum, count)) = pools.last()
            && sum / count as f64 >= pool.0 / pool.1 as f64
        {
            pools.pop();
            pool = (pool.0 + sum, pool.1 + count);
        }
        pools.push(pool);
    }
    let lowest = left + widths.first().map_or(0.0, |first| first / 2.0);
    let highest = right - end;
    pools
        .into_iter()
        .flat_map(|(sum, count)| std::iter::repeat_n((sum / count as f64).min(highest).max(lowest), count))
        .zip(offsets)
        .map(|(place, offset)| place + offset)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn boxes_that_want_the_same_place_lie_around_it() {
        assert_eq!(side_by_side(&[50.0, 50.0, 80.0], &[10.0; 3], 0.0, 100.0), [45.0, 55.0, 80.0]);
        assert_eq!(side_by_side(&[0.0, 100.0], &[10.0, 20.0], 0.0, 100.0), [5.0, 90.0]);
        assert_eq!(side_by_side(&[50.0, 50.0], &[30.0, 10.0], 0.0, 100.0), [40.0, 60.0]);
        assert_eq!(side_by_side(&[], &[], 0.0, 100.0), [0.0; 0]);
    }

    proptest! {
        #[test]
        fn boxes_never_overlap(
            mut boxes in proptest::collection::vec((0.0..1000.0f64, 1.0..60.0f64), 0..40), width in 1.0..3000.0f64,
        ) {
            boxes.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (wanted, widths): (Vec<_>, Vec<_>) = boxes.into_iter().unzip();
            let places = side_by_side(&wanted, &widths, 0.0, width);
            let mut end = 0.0;
            for (place, own) in places.iter().zip(&widths) {
                prop_assert!(place - own / 2.0 >= end - 1e-6);
                end = place + own / 2.0;
            }
            prop_assert!(end <= width.max(widths.iter().sum()) + 1e-6);
        }
    }
}
