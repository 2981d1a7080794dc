//! Pictures of what a benchmark measured: bars in groups, as SVG for pages and as PNG for whoever cannot show that.

use anyhow::{Context as _, Result, anyhow, ensure};
use epaint_default_fonts::UBUNTU_LIGHT;
use plotters::{
    backend::SVGBackend,
    coord::Shift,
    drawing::{DrawingArea, IntoDrawingArea as _},
    element::{PathElement, Rectangle, Text},
    style::{
        Color as _, IntoFont as _, RGBColor, TextStyle, WHITE,
        text_anchor::{HPos, Pos, VPos},
    },
};
use resvg::{
    tiny_skia::{Pixmap, Transform},
    usvg,
};

/// Bars beside each other, all of one unit. Shorter is not always better: the title says what is.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// What is measured, and what is good.
    pub title: String,
    /// Where and how.
    pub subtitle: String,
    /// Unit of every value, as it stands behind one.
    pub unit: &'static str,
    /// From the top.
    pub groups: Vec<Group>,
}

/// Bars that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Its heading.
    pub name: String,
    /// From the top.
    pub bars: Vec<Bar>,
}

/// One measured value.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// What it is of.
    pub label: String,
    /// Bars of one series have one colour throughout.
    pub series: usize,
    /// The median, say. Less than nothing is drawn as nothing.
    pub value: f64,
    /// What most single measurements lie between, if that is known.
    pub spread: Option<(f64, f64)>,
    /// Where it is meant to end, if it is.
    pub goal: Option<f64>,
}

const WIDTH: u32 = 960;
/// Room for labels, left of all bars.
const LABELS: i32 = 330;
/// Room for values, right of the longest bar.
const VALUES: i32 = 90;
const HEAD: i32 = 64;
const HEADING: i32 = 26;
const ROW: i32 = 20;
const GAP: i32 = 8;
const FOOT: i32 = 28;
/// How many pixels of a PNG are one of the SVG's.
const DENSITY: f32 = 2.0;

const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(215, 215, 215);
const GOAL: RGBColor = RGBColor(200, 30, 30);
/// Told apart by colour-blind eyes too: Okabe and Ito's palette.
const SERIES: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(150, 150, 150),
    RGBColor(60, 60, 60),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

impl Chart {
    /// As SVG, whole.
    ///
    /// # Errors
    ///
    /// If there is nothing to draw.
    pub fn svg(&self) -> Result<String> {
        let scale = self.scale()?;
        let mut svg = String::new();
        let area =
            SVGBackend::with_string(&mut svg, (WIDTH, self.height().cast_unsigned())).into_drawing_area();
        area.fill(&WHITE)
            .and_then(|()| self.draw(&area, scale))
            .and_then(|()| area.present())
            .map_err(|error| anyhow!("draw: {error}"))?;
        drop(area);
        Ok(svg)
    }

    /// As PNG, twice as large as the SVG says.
    ///
    /// # Errors
    ///
    /// If there is nothing to draw.
    pub fn png(&self) -> Result<Vec<u8>> {
        let mut options = usvg::Options::default();
        // This machine may have no fonts at all.
        let fonts = options.fontdb_mut();
        fonts.load_font_data(UBUNTU_LIGHT.to_vec());
        let family =
            fonts.faces().next().and_then(|face| face.families.first()).map(|(name, _)| name.clone());
        fonts.set_sans_serif_family(family.context("a font")?);
        let tree = usvg::Tree::from_str(&self.svg()?, &options)?;
        let size = tree.size().to_int_size().scale_by(DENSITY).context("a size")?;
        let mut picture = Pixmap::new(size.width(), size.height()).context("room for a picture")?;
        resvg::render(&tree, Transform::from_scale(DENSITY, DENSITY), &mut picture.as_mut());
        Ok(picture.encode_png()?)
    }

    fn height(&self) -> i32 {
        let rows: usize = self.groups.iter().map(|group| group.bars.len()).sum();
        let (rows, groups) = (i32::try_from(rows), i32::try_from(self.groups.len()));
        HEAD + rows.unwrap_or(0) * ROW + groups.unwrap_or(0) * (HEADING + GAP) + FOOT
    }

    /// From values to pixels.
    fn scale(&self) -> Result<Scale> {
        let bars = self.groups.iter().flat_map(|group| &group.bars);
        let ends = bars.flat_map(|bar| [Some(bar.value), bar.spread.map(|(_, high)| high), bar.goal]);
        let longest = ends.flatten().fold(0.0, f64::max);
        ensure!(longest > 0.0 && longest.is_finite(), "{}: no value to draw", self.title);
        Ok(Scale { per_unit: f64::from(WIDTH.cast_signed() - LABELS - VALUES) / longest, longest })
    }

    fn draw(&self, area: &Area<'_>, scale: Scale) -> Drawn {
        write(area, &self.title, (16, 22), 19, HPos::Left, INK)?;
        write(area, &self.subtitle, (16, 44), 13, HPos::Left, INK)?;
        let bottom = self.height() - FOOT;
        for tick in scale.ticks() {
            let x = scale.x(tick);
            area.draw(&PathElement::new([(x, HEAD), (x, bottom)], FAINT))?;
            write(area, &format!("{tick}"), (x, bottom + 12), 12, HPos::Center, INK)?;
        }
        write(area, self.unit, (WIDTH.cast_signed() - 12, bottom + 12), 12, HPos::Right, INK)?;
        let mut y = HEAD;
        for group in &self.groups {
            write(area, &group.name, (16, y + HEADING / 2), 14, HPos::Left, INK)?;
            y += HEADING;
            for bar in &group.bars {
                bar.draw(area, scale, y)?;
                y += ROW;
            }
            y += GAP;
        }
        Ok(())
    }
}

type Drawn = Result<(), plotters::drawing::DrawingAreaErrorKind<std::io::Error>>;

impl Bar {
    fn draw(&self, area: &Area<'_>, scale: Scale, y: i32) -> Drawn {
        let (top, middle, bottom) = (y + 3, y + ROW / 2, y + ROW - 3);
        write(area, &self.label, (LABELS - 8, middle), 13, HPos::Right, INK)?;
        let colour = SERIES[self.series % SERIES.len()];
        let end = scale.x(self.value);
        area.draw(&Rectangle::new([(LABELS, top), (end, bottom)], colour.filled()))?;
        let mut behind = end;
        if let Some((low, high)) = self.spread {
            let (low, high) = (scale.x(low), scale.x(high));
            area.draw(&PathElement::new([(low, middle), (high, middle)], INK))?;
            behind = behind.max(high);
        }
        if let Some(goal) = self.goal {
            let x = scale.x(goal);
            area.draw(&PathElement::new([(x, y), (x, y + ROW)], GOAL.stroke_width(2)))?;
            // A value that would stand on the mark stands behind it.
            behind = if (behind..behind + VALUES / 2).contains(&x) { x } else { behind };
        }
        write(area, &short(self.value), (behind + 6, middle), 13, HPos::Left, INK)
    }
}

#[derive(Clone, Copy)]
struct Scale {
    per_unit: f64,
    longest: f64,
}

impl Scale {
    #[expect(clippy::cast_possible_truncation, reason = "within the picture")]
    fn x(self, value: f64) -> i32 {
        LABELS + (value.clamp(0.0, self.longest) * self.per_unit).round() as i32
    }

    /// Round values, five or a few more.
    fn ticks(self) -> impl Iterator<Item = f64> {
        let power = 10_f64.powf((self.longest / 5.0).log10().floor());
        let step =
            [1.0, 2.0, 5.0].map(|factor| factor * power).into_iter().rfind(|step| step * 5.0 <= self.longest);
        let step = step.unwrap_or(power);
        (0..).map(move |number| f64::from(number) * step).take_while(move |tick| *tick <= self.longest)
    }
}

/// Three digits, or all in front of the point.
fn short(value: f64) -> String {
    match value.abs() {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn write(area: &Area<'_>, text: &str, at: (i32, i32), size: i32, to: HPos, colour: RGBColor) -> Drawn {
    let style =
        TextStyle::from(("sans-serif", size).into_font()).color(&colour).pos(Pos::new(to, VPos::Center));
    area.draw(&Text::new(text.to_owned(), at, style))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(values: &[f64]) -> Chart {
        let bars = values.iter().map(|&value| Bar {
            label: format!("of {value}"),
            series: 0,
            value,
            spread: Some((value, value + 1.0)),
            goal: Some(50.0),
        });
        let groups = vec![Group { name: "group".to_owned(), bars: bars.collect() }];
        Chart { title: "<title>".to_owned(), subtitle: String::new(), unit: "ns", groups }
    }

    #[test]
    fn every_bar_has_its_length_and_every_text_stands_there_escaped() {
        let svg = chart(&[25.0, 100.0, -3.0]).svg().unwrap();
        assert!(svg.contains("&lt;title&gt;") && svg.contains("of 25") && svg.contains("of -3"), "{svg}");
        let widths: Vec<f64> = svg
            .lines()
            .filter(|line| line.starts_with("<rect") && line.contains("#0072B2"))
            .map(|line| line.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(widths.len(), 3);
        assert!((widths[0] * 4.0 - widths[1]).abs() <= 4.0 && widths[2] == 0.0, "{widths:?}");
    }

    #[test]
    fn a_picture_has_ink_of_text_and_bars() {
        let png = Pixmap::decode_png(&chart(&[25.0]).png().unwrap()).unwrap();
        let has = |colour: RGBColor| {
            png.pixels()
                .iter()
                .any(|pixel| (pixel.red(), pixel.green(), pixel.blue()) == (colour.0, colour.1, colour.2))
        };
        assert_eq!(png.width(), 2 * WIDTH);
        assert!(has(SERIES[0]) && has(GOAL) && !has(SERIES[1]));
        // Letters have edges of all shades; lines and bars have none.
        assert!(
            png.pixels().iter().any(|pixel| (60..200).contains(&pixel.red()) && pixel.red() == pixel.blue())
        );
    }

    #[test]
    fn nothing_is_not_drawn() {
        assert!(chart(&[]).svg().is_err());
    }

    #[test]
    fn ticks_are_round_and_few() {
        for longest in [0.3, 1.0, 7.0, 49.0, 1280.0, 99_999.0] {
            let ticks: Vec<_> = Scale { per_unit: 1.0, longest }.ticks().collect();
            assert!((5..=13).contains(&ticks.len()), "{longest}: {ticks:?}");
        }
    }
}
