//! What is printed and drawn.

use comfy_table::{Table, presets};
use serde::Serialize;
use sluice_tests::{
    bench::{summary::Summary, text::finished},
    chart::{Bar, Chart, Group},
};

/// What was measured.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) runs: u32,
    pub(crate) packets: u32,
    /// Loop, driver and tail call, nanoseconds; subtracted from every figure. At tc, and before the stack.
    pub(crate) overhead: [f64; 2],
    pub(crate) cases: Vec<Figure>,
}

/// One row, in net nanoseconds per packet.
#[derive(Serialize)]
pub(crate) struct Figure {
    pub(crate) group: String,
    pub(crate) case: String,
    #[serde(flatten)]
    pub(crate) net: Summary,
    /// What it is meant to stay under.
    pub(crate) target: Option<f64>,
}

/// What costs more is left out of the picture, where it would make all else short.
const LONGEST: f64 = 500.0;

impl Report {
    /// For people.
    pub(crate) fn text(&self) -> String {
        format!("{}\n\n{}", self.conditions(), self.table(presets::NOTHING))
    }

    /// For docs/performance.md.
    pub(crate) fn markdown(&self) -> String {
        format!("{}\n\n{}\n", self.conditions(), self.table(presets::ASCII_MARKDOWN))
    }

    /// Bars of all that runs for every packet.
    pub(crate) fn chart(&self) -> Chart {
        let mut groups: Vec<Group> = Vec::new();
        for figure in self.cases.iter().filter(|figure| figure.net.median < LONGEST) {
            if groups.last().is_none_or(|group| group.name != figure.group) {
                groups.push(Group { name: figure.group.clone(), bars: Vec::new() });
            }
            let bar = Bar {
                label: figure.case.clone(),
                series: if figure.group.starts_with("floor") { 6 } else { 0 },
                value: figure.net.median,
                spread: Some((figure.net.low, figure.net.high)),
                goal: figure.target,
            };
            groups.last_mut().into_iter().for_each(|group| group.bars.push(bar.clone()));
        }
        Chart {
            title: "Nanoseconds per packet in the kernel programs (less is better; red: the goal)".to_owned(),
            subtitle: format!(
                "{}, Linux {}; medians, half of {} runs within the line",
                self.cpu, self.kernel, self.runs
            ),
            unit: "ns",
            groups,
        }
    }

    fn conditions(&self) -> String {
        let Self { kernel, cpu, runs, packets, overhead: [tc, xdp], .. } = self;
        format!(
            "Nanoseconds per packet, net of {tc:.1} at tc and {xdp:.1} at XDP for loop and driver.\n\
             Linux {kernel}, {cpu}; medians of {runs} runs of {packets} packets."
        )
    }

    fn table(&self, preset: &str) -> String {
        let mut table = Table::new();
        table.load_preset(preset).set_header(["", "", "median", "half between", "goal"]);
        let mut group = "";
        for figure in &self.cases {
            let heading = if figure.group == group { "" } else { &figure.group };
            group = &figure.group;
            table.add_row([
                heading.to_owned(),
                figure.case.clone(),
                format!("{:.1}", figure.net.median),
                format!("{:.1}-{:.1}", figure.net.low, figure.net.high),
                figure.target.map_or_else(String::new, |target| format!("{target:.0}")),
            ]);
        }
        finished(table, 2)
    }
}
