//! The parts of the page that a host may set.

use std::collections::BTreeMap;

use serde::Serialize;

/// The settings passed to the page's scripts.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Shown {
    pub(super) title: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) back: Option<Link>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) docs: Option<String>,
    pub(super) example: String,
    pub(super) text: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Link {
    pub(super) label: String,
    pub(super) href: String,
}

/// A colour, and black or white text on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accent {
    rgb: [u8; 3],
}

impl Accent {
    pub(super) fn parse(colour: &str) -> Option<Self> {
        let digits = colour.strip_prefix('#').filter(|digits| digits.len() == 6)?;
        let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
        let number = u32::from_str_radix(digits, 16).ok().filter(|_| is_hex)?;
        let [_, rgb @ ..] = number.to_be_bytes();
        Some(Self { rgb })
    }

    /// Its CSS custom properties.
    pub(super) fn css(self) -> String {
        let [r, g, b] = self.rgb;
        let ink = if self.is_light() { "#000000" } else { "#ffffff" };
        format!(":root {{ --accent: #{r:02x}{g:02x}{b:02x}; --on-accent: {ink}; }}\n")
    }

    /// Whether black has more contrast to it than white, by the relative luminance and
    /// contrast of WCAG 2.2.
    fn is_light(self) -> bool {
        let linear = self.rgb.map(|channel| {
            let channel = f64::from(channel) / 255.0;
            if channel <= 0.04045 { channel / 12.92 } else { ((channel + 0.055) / 1.055).powf(2.4) }
        });
        let [r, g, b] = linear;
        let luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
        (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accent_is_six_digits() {
        assert_eq!(Accent::parse("#0B6e4f"), Some(Accent { rgb: [0x0b, 0x6e, 0x4f] }));
        for wrong in
            ["", "#", "0b6e4f", "#0b6e4", "#0b6e4ff", "#0b6e4g", "#+b6e4f", "#é6e4f", "red"]
        {
            assert_eq!(Accent::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn text_is_black_on_light_colours_and_white_on_dark_ones() {
        let ink = |colour| Accent::parse(colour).map(Accent::is_light);
        for (colour, light) in
            [("#000000", false), ("#ffffff", true), ("#ffd500", true), ("#0b6e4f", false)]
        {
            assert_eq!(ink(colour), Some(light), "{colour}");
        }
    }
}
