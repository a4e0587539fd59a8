//! A timeline of one forward call, as `paf trace` writes it: Chrome's trace format.

use serde::Deserialize;
use serde_json::Value;

use super::write::Escaped;
use crate::error::{Error, Result};

/// Slices by track.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    tracks: Vec<Track>,
}

#[derive(Debug, Clone, PartialEq)]
struct Track {
    /// Process and thread of the format.
    key: (String, String),
    name: String,
    slices: Vec<Slice>,
}

#[derive(Debug, Clone, PartialEq)]
struct Slice {
    name: String,
    /// Slices of a kind have a colour: the category, or the name's first word.
    kind: String,
    start_us: f64,
    duration_us: f64,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "traceEvents")]
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    ph: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    cat: String,
    #[serde(default)]
    pid: Value,
    #[serde(default)]
    tid: Value,
    ts: Option<f64>,
    dur: Option<f64>,
    #[serde(default)]
    args: Value,
}

/// More slices than this are no single forward call.
const MOST_SLICES: usize = 20_000;
const LARGEST_US: f64 = 1e12;

fn refuse(what: &'static str, got: impl ToString, expected: &str) -> Error {
    Error::Mismatch { operation: "trace", what, got: got.to_string(), expected: expected.into() }
}

impl Trace {
    /// Whether a text is in the format, whatever its events.
    pub(super) fn is_one(text: &str) -> bool {
        #[derive(Deserialize)]
        struct Probe {
            #[serde(rename = "traceEvents")]
            _events: serde::de::IgnoredAny,
        }
        serde_json::from_str::<Probe>(text).is_ok()
    }

    /// Reads the complete events (`"ph": "X"`) of a trace, and the names of its threads.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if it is no trace, has no complete events or very many, or a time is none.
    pub fn parse(text: &str) -> Result<Self> {
        let document: Document =
            serde_json::from_str(text).map_err(|error| refuse("file", error, "a trace with traceEvents"))?;
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let mut tracks: Vec<Track> = Vec::new();
        for event in &document.events {
            let key = (plain(&event.pid), plain(&event.tid));
            let is_name = event.ph == "M" && event.name == "thread_name";
            if event.ph != "X" && !is_name {
                continue;
            }
            let i = tracks.iter().position(|track| track.key == key).unwrap_or_else(|| {
                tracks.push(Track { name: format!("track {}", key.1), key, slices: Vec::new() });
                tracks.len() - 1
            });
            if is_name {
                tracks[i].name = plain(&event.args["name"]);
                continue;
            }
            let time = |time: Option<f64>, what| {
                time.filter(|time| (0.0..=LARGEST_US).contains(time))
                    .ok_or_else(|| refuse(what, format!("{time:?} ({})", event.name), "a time, µs"))
            };
            let (start_us, duration_us) = (time(event.ts, "ts")?, time(event.dur, "dur")?);
            let first = event.name.split([' ', ':', '(']).next().unwrap_or_default();
            let kind = if event.cat.is_empty() { first.to_owned() } else { event.cat.clone() };
            tracks[i].slices.push(Slice { name: event.name.clone(), kind, start_us, duration_us });
        }
        tracks.retain(|track| !track.slices.is_empty());
        // Numbers in their order, which have fewer digits first.
        let rank = |key: &(String, String)| [&key.0, &key.1].map(|text| (text.len(), text.clone()));
        tracks.sort_by_key(|track| rank(&track.key));
        let count = tracks.iter().map(|track| track.slices.len()).sum::<usize>();
        if count == 0 || count > MOST_SLICES {
            return Err(refuse("number of complete events", count, &format!("1 to {MOST_SLICES}")));
        }
        Ok(Self { tracks })
    }

    fn slices(&self) -> impl Iterator<Item = &Slice> {
        self.tracks.iter().flat_map(|track| &track.slices)
    }

    /// Where the first slice begins and the last one ends, µs.
    fn ends(&self) -> (f64, f64) {
        let ends = self.slices().map(|slice| (slice.start_us, slice.start_us + slice.duration_us));
        ends.fold((f64::MAX, 0.0), |all, own| (all.0.min(own.0), all.1.max(own.1)))
    }

    /// In words: tracks, slices, and from the first begin to the last end.
    pub fn summary(&self) -> String {
        let (start, end) = self.ends();
        let tracks: Vec<_> =
            self.tracks.iter().map(|track| format!("{} ({} slices)", track.name, track.slices.len())).collect();
        format!("{:.2} µs on {} tracks: {}", end - start, self.tracks.len(), tracks.join(", "))
    }

    /// The whole as an SVG document.
    pub(super) fn svg(&self) -> String {
        let (start, end) = self.ends();
        self.drawn(start, end)
    }

    /// The first slices, near enough to be read; `None` if that is the whole.
    pub(super) fn beginning(&self) -> Option<String> {
        const SLICES: usize = 16;
        let mut ends: Vec<f64> = self.slices().map(|slice| slice.start_us + slice.duration_us).collect();
        ends.sort_by(f64::total_cmp);
        let end = *ends.get(SLICES)?;
        (end < self.ends().1).then(|| self.drawn(self.ends().0, end))
    }

    /// What lies between `start` and `end`.
    fn drawn(&self, start: f64, end: f64) -> String {
        const LEFT: f64 = 130.0;
        const WIDTH: f64 = 950.0;
        const TRACK: f64 = 40.0;
        // White text can be read on each of them.
        const COLOURS: [&str; 6] = ["#0072B2", "#B34E00", "#00735A", "#AA3399", "#8A6000", "#666666"];
        let scale = WIDTH / (end - start).max(1e-9);
        let (width, height) = (LEFT + WIDTH + 20.0, TRACK * self.tracks.len() as f64 + 30.0);
        let mut svg = format!(
            "<svg width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" xmlns=\"http://www.w3.org/2000/svg\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#FFFFFF\"/>\n"
        );
        // A colour a kind, in the order in which they come.
        let mut kinds: Vec<&str> = Vec::new();
        for (i, track) in self.tracks.iter().enumerate() {
            let y = TRACK * i as f64;
            svg += &format!(
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" font-size=\"12\" fill=\"#222222\">{}</text>\n",
                LEFT - 8.0,
                y + TRACK / 2.0 + 4.0,
                Escaped(&short(&track.name, 18))
            );
            for slice in &track.slices {
                let (left, right) = (slice.start_us.max(start), (slice.start_us + slice.duration_us).min(end));
                if right < left {
                    continue;
                }
                let colour = kinds.iter().position(|kind| *kind == slice.kind).unwrap_or_else(|| {
                    kinds.push(&slice.kind);
                    kinds.len() - 1
                });
                let (x, w) = (LEFT + (left - start) * scale, ((right - left) * scale).max(0.5));
                svg += &format!(
                    "<g><title>{}, {:.2} µs</title><rect x=\"{x:.2}\" y=\"{}\" width=\"{w:.2}\" height=\"{}\" fill=\"{}\" stroke=\"#FFFFFF\" \
                     stroke-width=\"0.5\"/>",
                    Escaped(&slice.name),
                    slice.duration_us,
                    y + 5.0,
                    TRACK - 10.0,
                    COLOURS[colour % COLOURS.len()],
                );
                let fits = (w / 7.0) as usize;
                if fits >= 3 {
                    svg += &format!(
                        "<text x=\"{:.2}\" y=\"{}\" text-anchor=\"middle\" font-size=\"11\" fill=\"#FFFFFF\">{}</text>",
                        x + w / 2.0,
                        y + TRACK / 2.0 + 4.0,
                        Escaped(&short(&slice.name, fits))
                    );
                }
                svg += "</g>\n";
            }
        }
        let bottom = height - 8.0;
        for (x, anchor, us) in [(LEFT, "start", 0.0), (LEFT + WIDTH, "end", end - start)] {
            svg += &format!(
                "<text x=\"{x}\" y=\"{bottom}\" text-anchor=\"{anchor}\" font-size=\"12\" fill=\"#222222\">{us:.2} µs</text>\n"
            );
        }
        svg + "</svg>\n"
    }
}

/// The text, or its beginning.
fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most { text.to_owned() } else { text.chars().take(most - 1).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = r#"{"displayTimeUnit": "ns", "traceEvents": [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 2, "args": {"name": "FFN <&"}},
        {"ph": "X", "name": "0 W1", "cat": "W1", "pid": 1, "tid": 2, "ts": 10.0, "dur": 4.0, "args": {"shape": "128"}},
        {"ph": "X", "name": "QKV", "pid": 1, "tid": 1, "ts": 10.5, "dur": 5.5},
        {"ph": "i", "name": "mark", "pid": 1, "tid": 1, "ts": 11}
    ]}"#;

    #[test]
    fn a_track_a_thread_a_slice_an_event() {
        let trace = Trace::parse(TRACE).unwrap();
        assert_eq!(trace.summary(), "6.00 µs on 2 tracks: track 1 (1 slices), FFN <& (1 slices)");
        let svg = trace.svg();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let titles: Vec<_> = document.descendants().filter(|node| node.has_tag_name("title")).collect();
        assert_eq!(
            titles.iter().filter_map(|title| title.text()).collect::<Vec<_>>(),
            ["QKV, 5.50 µs", "0 W1, 4.00 µs"]
        );
        let width = |i: usize| {
            let rect = titles[i].next_sibling_element().unwrap();
            rect.attribute("width").unwrap().parse::<f64>().unwrap()
        };
        assert!((width(0) / width(1) - 5.5 / 4.0).abs() < 1e-3);
        assert!(svg.contains("FFN &lt;&amp;") && trace.beginning().is_none());
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        for (text, part) in [
            ("[]", "traceEvents"),
            ("{\"traceEvents\": []}", "complete events is 0"),
            ("{\"traceEvents\": [{\"ph\": \"X\", \"name\": \"a\", \"ts\": 1}]}", "dur"),
            ("{\"traceEvents\": [{\"ph\": \"X\", \"name\": \"a\", \"ts\": -1, \"dur\": 1}]}", "ts"),
        ] {
            let error = Trace::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_beginning_of_many_slices_is_drawn_larger() {
        let events: Vec<_> = (0..100)
            .map(|i| format!("{{\"ph\": \"X\", \"name\": \"k{i}\", \"tid\": {}, \"ts\": {i}, \"dur\": 1}}", i % 2))
            .collect();
        let trace = Trace::parse(&format!("{{\"traceEvents\": [{}]}}", events.join(","))).unwrap();
        let (all, some) = (trace.svg(), trace.beginning().unwrap());
        assert_eq!((all.matches("<rect x").count(), some.matches("<rect x").count()), (100, 18));
    }
}
