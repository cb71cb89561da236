//! The report as one self-contained page: curves, table, absences and the data's attribution.
//!
//! Nothing is fetched, which the page's own content security policy enforces, and nothing runs. Every text
//! that came from a driver, a plugin or the command line is escaped.

use super::chart;
use super::digits::{CLASSES, Digits, SIDE};
use super::report::{DemoReport, DeviceReport, epochs, joined, loss_digits, percent, sampled, whole};
use crate::cli::output;
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");
/// Rows of the table of losses; longer runs show some of their epochs.
const MOST_ROWS: usize = 100;

/// Writes the page. `settings` are name and value of what the run was asked to do, shown under the title;
/// `digits` gives the pictures.
pub fn html(report: &DemoReport, digits: &Digits, settings: &[(&str, String)]) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>Halite: handwritten digits on {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
        devices(report.devices.len())
    );
    header(&mut page, report, digits, settings);
    curves(&mut page, report);
    table(&mut page, report);
    losses(&mut page, report);
    absences(&mut page, report);
    footer(&mut page);
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

/// Text as HTML shows it literally, also within a quoted attribute.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            control if control.is_control() => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

fn devices(count: usize) -> String {
    format!("{count} device{}", if count == 1 { "" } else { "s" })
}

fn header(page: &mut String, report: &DemoReport, digits: &Digits, settings: &[(&str, String)]) {
    page.push_str("<header>\n<p class=\"brand\">Halite</p>\n<h1>Learning to read handwritten digits</h1>\n");
    pictures(page, digits);
    let best = report
        .devices
        .iter()
        .filter_map(|device| device.test_accuracy)
        .fold(None, |best: Option<f64>, own| Some(best.map_or(own, |best| best.max(own))));
    let _ = write!(
        page,
        "<p class=\"summary\">One network, the same initial weights, {} training images, {}.",
        output::grouped(report.train_images as u64),
        devices(report.devices.len())
    );
    if let Some(best) = best {
        let _ = write!(
            page,
            " Of {} images never seen in training, up to <strong>{}</strong> were recognised.",
            report.test_images,
            percent(best)
        );
    }
    page.push_str("</p>\n");
    if !settings.is_empty() {
        page.push_str("<dl class=\"settings\">");
        for (name, value) in settings {
            let _ = write!(page, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
        }
        page.push_str("</dl>\n");
    }
    page.push_str("</header>\n");
}

/// The first training image of every class, ink as opacity.
fn pictures(page: &mut String, digits: &Digits) {
    page.push_str(
        "<div class=\"digits\" role=\"img\" aria-label=\"One training image of each digit, 0 to 9\">",
    );
    let train = digits.train();
    for class in 0..CLASSES {
        let Some(index) = train.labels().iter().position(|&label| usize::from(label) == class) else {
            continue;
        };
        let _ = write!(page, r#"<svg viewBox="0 0 {SIDE} {SIDE}" aria-hidden="true">"#);
        for (position, &ink) in train.pixels(index).iter().enumerate().filter(|&(_, &ink)| ink > 0) {
            let _ = write!(
                page,
                r#"<rect x="{}" y="{}" width="1.02" height="1.02" opacity="{}"/>"#,
                position % SIDE,
                position / SIDE,
                f64::from(ink) / 16.0
            );
        }
        page.push_str("</svg>");
    }
    page.push_str("</div>\n");
}

fn curves(page: &mut String, report: &DemoReport) {
    let wide = chart::loss_curves(&report.devices, chart::WIDE);
    if wide.is_empty() {
        return;
    }
    page.push_str("<section>\n<h2>Training loss</h2>\n<figure>\n<ul class=\"legend\">");
    for (series, device) in report.devices.iter().enumerate().filter(|(_, device)| !device.loss.is_empty()) {
        let _ = write!(
            page,
            r#"<li class="{}"><svg viewBox="0 0 26 10" aria-hidden="true"><polyline stroke-width="3" points="2,5 24,5"/></svg>{} <span>{}</span></li>"#,
            chart::class(series),
            escape(&device.id),
            escape(&device.name)
        );
    }
    let narrow = chart::loss_curves(&report.devices, chart::NARROW);
    let _ = write!(page, "</ul>\n{wide}\n{narrow}\n");
    page.push_str("<figcaption>Mean cross-entropy over each epoch. ");
    if report.devices.len() > 1 {
        page.push_str("Devices that agree draw the same curve, one on top of the other.");
    }
    page.push_str("</figcaption>\n</figure>\n</section>\n");
}

fn table(page: &mut String, report: &DemoReport) {
    page.push_str(
        "<section>\n<h2>Devices</h2>\n<table class=\"devices\">\n<thead><tr><th>Device</th>\
         <th class=\"number\">Test accuracy</th><th class=\"number\">Images/s</th><th class=\"number\">First loss</th>\
         <th class=\"number\">Last loss</th><th class=\"number\">Memory peak</th><th class=\"number\">Launches</th>\
         <th>Fallbacks</th></tr></thead>\n<tbody>\n",
    );
    for (series, device) in report.devices.iter().enumerate() {
        row(page, series, device);
    }
    page.push_str("</tbody>\n</table>\n</section>\n");
}

fn row(page: &mut String, series: usize, device: &DeviceReport) {
    let known = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    let _ = write!(
        page,
        r#"<tr><th scope="row" class="{}"><span class="key"></span>{}<small>{}</small></th>"#,
        chart::class(series),
        escape(&device.id),
        escape(&device.name)
    );
    for (name, class, value) in [
        ("Test accuracy", "number strong", known(device.test_accuracy.map(percent))),
        ("Images/s", "number", known(device.images_per_second.map(whole))),
        ("First loss", "number", known(device.loss.first().copied().map(loss_digits))),
        ("Last loss", "number", known(device.loss.last().copied().map(loss_digits))),
        ("Memory peak", "number", output::bytes(device.peak_memory_bytes)),
        ("Launches", "number", output::grouped(device.launches)),
    ] {
        let _ = write!(page, r#"<td class="{class}" data-name="{name}">{value}</td>"#);
    }
    page.push_str("<td data-name=\"Fallbacks\">");
    if device.fallbacks.is_empty() {
        page.push_str("none");
    } else {
        page.push_str("<ul>");
        for fallback in &device.fallbacks {
            let _ = write!(
                page,
                "<li><b>{}</b> {}</li>",
                escape(&fallback.op),
                escape(&joined(&fallback.reason))
            );
        }
        page.push_str("</ul>");
    }
    page.push_str("</td></tr>\n");
    if let Some(error) = &device.error {
        let _ = writeln!(
            page,
            r#"<tr class="error"><td colspan="8"><b>{} failed after {}:</b> {}</td></tr>"#,
            escape(&device.id),
            epochs(device.epochs),
            escape(&joined(error))
        );
    }
}

/// Every number of the curves, for those who cannot see them or want to copy them.
fn losses(page: &mut String, report: &DemoReport) {
    let longest = report.devices.iter().map(|device| device.loss.len()).max().unwrap_or(0);
    if longest == 0 {
        return;
    }
    page.push_str("<details>\n<summary>Loss per epoch, in numbers</summary>\n<div class=\"scroll\"><table class=\"losses\">\n");
    page.push_str("<thead><tr><th class=\"number\">Epoch</th>");
    for device in &report.devices {
        let _ = write!(page, "<th class=\"number\">{}</th>", escape(&device.id));
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for epoch in sampled(longest, MOST_ROWS) {
        let _ = write!(page, "<tr><td class=\"number\">{}</td>", epoch + 1);
        for device in &report.devices {
            let loss = device.loss.get(epoch).map_or_else(|| "–".to_owned(), |&loss| loss_digits(loss));
            let _ = write!(page, "<td class=\"number\">{loss}</td>");
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody>\n</table></div>\n</details>\n");
}

fn absences(page: &mut String, report: &DemoReport) {
    if report.unavailable.is_empty() {
        return;
    }
    page.push_str("<section>\n<h2>Not on this machine</h2>\n<dl class=\"absent\">\n");
    for absent in &report.unavailable {
        let _ = writeln!(
            page,
            "<dt>{}</dt><dd>{}</dd>",
            escape(&absent.backend),
            escape(&joined(&absent.reason))
        );
    }
    page.push_str("</dl>\n</section>\n");
}

fn footer(page: &mut String) {
    let _ = write!(
        page,
        "<footer>\n<p>Data: E. Alpaydin and C. Kaynak, <cite>Optical Recognition of Handwritten Digits</cite>, UCI \
         Machine Learning Repository, 1998, <a href=\"https://doi.org/10.24432/C50P49\">doi:10.24432/C50P49</a>, \
         licence <a href=\"https://creativecommons.org/licenses/by/4.0/\">CC BY 4.0</a>; reordered, split and packed, \
         no pixel altered.</p>\n<p>Made by halite {}.</p>\n</footer>\n",
        env!("CARGO_PKG_VERSION")
    );
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::super::report::{Fallback, UnavailableBackend};
    use super::*;

    fn page(report: &DemoReport) -> String {
        html(report, &Digits::builtin().unwrap(), &[("epochs", "3".to_owned())])
    }

    #[test]
    fn the_page_shows_every_part_of_the_report() {
        let page = page(&report());
        for part in [
            "98.3 %",
            "<polyline",
            "npu:0 failed after 1 epoch:</b> device lost while reading",
            "<b>exp</b> no such instruction",
            "<dt>cuda</dt><dd>no driver</dd>",
            "doi:10.24432/C50P49",
            "CC BY 4.0",
            "<dt>epochs</dt><dd>3</dd>",
        ] {
            assert!(page.contains(part), "{part} is missing");
        }
        assert_eq!(page.matches("<rect").count() > 200, page.contains("class=\"digits\""));
    }

    #[test]
    fn the_page_fetches_and_runs_nothing() {
        let page = page(&report());
        for part in ["<script", "src=", "@import", "url(", "<iframe", "onload", "srcset"] {
            assert!(!page.contains(part), "{part} found");
        }
        assert!(page.contains("default-src 'none'"));
        // The only addresses are links that a reader may follow.
        assert_eq!(page.matches("http").count(), page.matches("<a href=\"http").count() + 1);
    }

    #[test]
    fn text_from_outside_is_escaped_everywhere() {
        let evil = "<script>alert(\"x\")</script>'&\u{1b}[31m";
        let mut report = report();
        for device in &mut report.devices {
            device.id = evil.into();
            device.name = evil.into();
            device.error = Some(evil.into());
            device.fallbacks = vec![Fallback { op: evil.into(), reason: evil.into() }];
        }
        report.unavailable = vec![UnavailableBackend { backend: evil.into(), reason: evil.into() }];
        let page = html(&report, &Digits::builtin().unwrap(), &[(evil, evil.to_owned())]);
        assert!(!page.contains("<script") && !page.contains('\u{1b}'));
        assert!(page.contains("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&#39;&amp; [31m"));
    }

    #[test]
    fn tags_are_balanced() {
        let page = page(&report());
        for tag in [
            "main", "section", "table", "tr", "td", "ul", "li", "svg", "g", "dl", "dd", "details", "figure",
            "p",
        ] {
            let opened =
                page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn a_report_without_devices_is_still_a_page() {
        let empty = DemoReport { devices: vec![], ..report() };
        let page = page(&empty);
        assert!(page.contains("0 devices") && !page.contains("<polyline") && page.ends_with("</html>\n"));
    }
}
