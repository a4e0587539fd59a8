//! The file: Chrome's trace event format, with a track for each stream and a slice for each kernel.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::summary::{Summary, Total, waiting_counts};
use crate::measure::report::{self, Config, Run, Spread, shape_name};

/// Version of what is in the file beside its slices.
pub const SCHEMA: &str = "paf-cuda/trace/1";

/// One kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice {
    /// `caller`, `attention` or `ffn`.
    pub stream: String,
    /// When its first block began, counted from the first kernel's start on.
    pub start_us: f64,
    /// When its last block had ended, likewise.
    pub end_us: f64,
    /// The layer that it belongs to, from 0 on.
    pub layer: usize,
    /// What it does there: a product by its name, `rotation`, `attention`, `gate` or `join`.
    pub part: String,
    /// Module and name of the kernel.
    pub kernel: String,
    /// What else there is to say of it.
    pub arguments: Arguments,
}

/// What a slice says when it is clicked on.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Arguments {
    /// Module and name of the kernel.
    pub kernel: String,
    /// The layer that it belongs to, from 0 on.
    pub layer: usize,
    /// What it does there.
    pub part: String,
    /// Of what it computes, in words.
    pub shape: String,
    /// Design, by its short name.
    pub design: String,
    /// Schedule, by its name.
    pub schedule: String,
    /// Rows of tokens of the call.
    pub tokens: usize,
    /// Blocks along x and y.
    pub grid: [usize; 2],
    /// Blocks along x that form a cluster; 1 for none.
    pub cluster: usize,
    /// Threads of a block.
    pub block: u32,
    /// Shared memory of a block beside what the kernel has by itself, bytes.
    pub shared_bytes: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Whether it may begin before the kernel before it has ended.
    pub overlap: bool,
}

impl Slice {
    /// From its start to its end, µs.
    pub fn us(&self) -> f64 {
        self.end_us - self.start_us
    }
}

/// What was traced, and how.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct About {
    /// Preset that the dimensions come from.
    pub model: Option<String>,
    /// Dimensions.
    pub config: Config,
    /// Design, by its short name.
    pub design: String,
    /// Schedule; `auto` for the planner's choice.
    pub schedule: String,
    /// What was run: the schedule, and those variants of its kernels that are not as estimated.
    pub plan: String,
    /// `eager` or `graph`.
    pub mode: String,
    /// Element type.
    pub dtype: String,
    /// Sequences.
    pub batch: usize,
    /// Tokens of each, padding included; of packed sequences, those of the longest.
    pub seq_len: usize,
    /// Whether sequences follow each other without padding.
    pub packed: bool,
    /// Rows of tokens.
    pub tokens: usize,
    /// Where times come from, and what that does to them.
    pub source: String,
    /// How kernels and launches were told apart.
    pub assigned_by: String,
    /// Device time of a forward call that nobody traces, µs.
    pub forward_us: Spread,
    /// What the slices say.
    pub summary: Summary,
}

/// The file.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Trace {
    /// Its schema is [`SCHEMA`].
    #[serde(flatten)]
    pub run: Run,
    /// What viewers show times in.
    #[serde(rename = "displayTimeUnit")]
    pub unit: String,
    /// What was traced.
    #[serde(rename = "otherData")]
    pub about: About,
    /// Tracks and slices.
    #[serde(rename = "traceEvents")]
    pub events: Vec<Event>,
}

/// One of Chrome's trace events.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(tag = "ph")]
pub enum Event {
    /// A name of the process or of a track, or a track's place: `process_name`, `thread_name`, `thread_sort_index`.
    #[serde(rename = "M")]
    Metadata {
        /// Which of them.
        name: String,
        /// The device.
        pid: u32,
        /// The track.
        tid: u32,
        /// `{"name": …}` or `{"sort_index": …}`.
        args: serde_json::Value,
    },
    /// A kernel.
    #[serde(rename = "X")]
    Complete {
        /// Layer and part.
        name: String,
        /// The part alone, by which viewers can filter.
        cat: String,
        /// The device.
        pid: u32,
        /// The track.
        tid: u32,
        /// Start, µs.
        ts: f64,
        /// Duration, µs.
        dur: f64,
        /// Everything else.
        args: Arguments,
    },
}

/// The order of the tracks.
const STREAMS: [&str; 3] = ["caller", "attention", "ffn"];

impl Trace {
    /// The file of these kernels, whose times begin with the first one's start.
    pub fn new(run: Run, about: About, slices: &[Slice]) -> Self {
        let device = run.machine.name();
        let of = |name: &str, tid, args| Event::Metadata { name: name.into(), pid: 0, tid, args };
        let mut events = vec![of("process_name", 0, serde_json::json!({ "name": device }))];
        let mut tid = 0;
        for stream in STREAMS {
            let mut own: Vec<_> = slices.iter().filter(|slice| slice.stream == stream).collect();
            own.sort_by(|a, b| a.start_us.total_cmp(&b.start_us));
            // Slices of a track may not overlap. A kernel that began early has a place beside the stream's track.
            let mut lanes: Vec<Vec<&Slice>> = Vec::new();
            for slice in own {
                let free = |lane: &&mut Vec<&Slice>| lane.last().is_none_or(|last| last.end_us <= slice.start_us);
                match lanes.iter_mut().find(free) {
                    Some(lane) => lane.push(slice),
                    None => lanes.push(vec![slice]),
                }
            }
            for (i, lane) in lanes.iter().enumerate() {
                tid += 1;
                let name = if i == 0 { format!("stream {stream}") } else { format!("stream {stream}, begun early") };
                events.push(of("thread_name", tid, serde_json::json!({ "name": name })));
                events.push(of("thread_sort_index", tid, serde_json::json!({ "sort_index": tid })));
                events.extend(lane.iter().map(|slice| Event::Complete {
                    name: format!("{} {}", slice.layer, slice.part),
                    cat: slice.part.clone(),
                    pid: 0,
                    tid,
                    ts: slice.start_us,
                    dur: slice.us(),
                    args: slice.arguments.clone(),
                }));
            }
        }
        Self { run, unit: "ns".into(), about, events }
    }

    /// The kernels, in the order of the file, whose tracks are streams.
    pub fn slices(&self) -> Vec<Slice> {
        let mut streams = std::collections::BTreeMap::new();
        for event in &self.events {
            if let Event::Metadata { name, tid, args, .. } = event
                && name == "thread_name"
            {
                let name = args["name"].as_str().unwrap_or_default();
                let stream = name.trim_start_matches("stream ").split(',').next().unwrap_or_default();
                streams.insert(*tid, stream.to_owned());
            }
        }
        let slice = |event: &Event| match event {
            Event::Metadata { .. } => None,
            Event::Complete { tid, ts, dur, args, .. } => Some(Slice {
                stream: streams.get(tid).cloned().unwrap_or_default(),
                start_us: *ts,
                end_us: ts + dur,
                layer: args.layer,
                part: args.part.clone(),
                kernel: args.kernel.clone(),
                arguments: args.clone(),
            }),
        };
        self.events.iter().filter_map(slice).collect()
    }

    fn cells(&self) -> impl Iterator<Item = [String; 5]> + '_ {
        let Summary { totals, busy_us, .. } = &self.about.summary;
        totals.iter().map(move |Total { part, kernel, count, total_us }| {
            [
                part.clone(),
                kernel.clone(),
                count.to_string(),
                format!("{:.2}", total_us / *count as f64),
                format!("{:.1} %", 100.0 * total_us / busy_us),
            ]
        })
    }

    /// In words: what was traced, how long it took, how much of it was together, and where times come from.
    pub fn notes(&self) -> Vec<String> {
        let About { plan, mode, design, forward_us, source, assigned_by, summary: s, .. } = &self.about;
        let name = self.about.model.as_deref().unwrap_or("custom dimensions");
        let shape = shape_name(self.about.batch, self.about.seq_len, self.about.packed);
        let at_most = if waiting_counts(&self.slices()) {
            " (at most: attention after a wide product and the wide product after it count from their start on, with what they wait)"
        } else {
            ""
        };
        let together = match s.together_share {
            Some(share) => format!(
                "kernels of attention's branch ran for {:.1} µs, of the FFN's for {:.1}; one of each for {:.1}, {:.0} % of the \
                 shorter{at_most}",
                s.attention_us,
                s.ffn_us,
                s.together_us,
                100.0 * share
            ),
            None => "there is nothing of one branch".into(),
        };
        vec![
            format!("{name}: {} layers, {shape}, {design} {plan} {mode}", self.about.config.num_hidden_layers),
            format!(
                "forward: {:.1} ± {:.1} µs by events, not traced; traced, {:.1} µs from the first kernel's start to the last one's end",
                forward_us.median,
                forward_us.half_width(),
                s.span_us
            ),
            format!("time together: {together}"),
            format!("idle: no kernel ran in {:.1} % of the traced time", 100.0 * s.idle_share),
            format!("times: {source}; told apart by {assigned_by}"),
        ]
    }

    /// Totals of the kernels for a terminal.
    pub fn table(&self) -> String {
        report::table(COLUMNS, self.cells())
    }

    /// The same in Markdown, and what it means.
    pub fn markdown(&self) -> String {
        let notes: String = self.notes().iter().map(|line| format!("- {line}\n")).collect();
        report::markdown(COLUMNS, self.cells()) + "\n" + &notes
    }

    /// The file's text.
    pub fn json(&self) -> String {
        report::json(self)
    }
}

const COLUMNS: [&str; 5] = ["part", "kernel", "launches", "µs each", "of the busy time"];

#[cfg(test)]
pub(super) mod tests;
