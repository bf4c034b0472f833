//! Writes a drawing as SVG or PNG; colours and text styles of both drawings.

use anyhow::Context;
use plotters::prelude::RGBColor;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontFamily, FontStyle, IntoFont, TextStyle};
use resvg::{tiny_skia, usvg};
use std::path::Path;
use std::sync::Arc;

pub(super) const INK: RGBColor = RGBColor(31, 41, 55);
pub(super) const FAINT: RGBColor = RGBColor(107, 114, 128);
pub(super) const PALE: RGBColor = RGBColor(229, 231, 235);
pub(super) const ALARM: RGBColor = RGBColor(220, 38, 38);
/// One per scheme.
pub(super) const COLOURS: [RGBColor; 4] = [
    RGBColor(37, 99, 235),
    RGBColor(217, 119, 6),
    RGBColor(5, 150, 105),
    RGBColor(147, 51, 234),
];

/// PNG pixels per SVG unit.
const SHARPNESS: f32 = 2.0;

/// Text of this size and colour, aligned horizontally by `across`.
pub(super) fn text(size: u32, colour: RGBColor, across: HPos) -> TextStyle<'static> {
    ("DejaVu Sans", size)
        .into_font()
        .color(&colour)
        .pos(Pos::new(across, VPos::Center))
}

/// Bold text.
pub(super) fn bold(size: u32, colour: RGBColor, across: HPos) -> TextStyle<'static> {
    let font = (FontFamily::Name("DejaVu Sans"), size, FontStyle::Bold).into_font();
    font.color(&colour).pos(Pos::new(across, VPos::Center))
}

/// Writes the drawing in the format of the file's extension.
pub(super) fn write(svg: &str, path: &Path) -> anyhow::Result<()> {
    if path.extension().is_some_and(|extension| extension == "png") {
        return Ok(llm_int8_files::write(path, &png(svg)?)?);
    }

    Ok(llm_int8_files::write(path, svg.as_bytes())?)
}

fn png(svg: &str) -> anyhow::Result<Vec<u8>> {
    let mut options = usvg::Options {
        font_family: "DejaVu Sans".into(),
        ..usvg::Options::default()
    };
    let fonts = Arc::make_mut(&mut options.fontdb);
    fonts.load_font_data(dejavu::sans::regular().to_vec());
    fonts.load_font_data(dejavu::sans::bold().to_vec());
    let tree = usvg::Tree::from_str(svg, &options)?;
    let size = tree
        .size()
        .to_int_size()
        .scale_by(SHARPNESS)
        .context("the picture is too large")?;
    let mut pixels =
        tiny_skia::Pixmap::new(size.width(), size.height()).context("the picture is too large")?;
    let scale = tiny_skia::Transform::from_scale(SHARPNESS, SHARPNESS);
    resvg::render(&tree, scale, &mut pixels.as_mut());

    Ok(pixels.encode_png()?)
}
