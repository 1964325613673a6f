//! The country that an address belongs to.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;

/// An ISO 3166-1 alpha-2 country code, such as `DE`.
///
/// ```
/// use keygate::audit::CountryCode;
///
/// assert_eq!(CountryCode::new("de").unwrap().as_str(), "DE");
/// assert!(CountryCode::new("D3").is_none());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CountryCode([u8; 2]);

impl CountryCode {
    /// Two ASCII letters in either case; `None` for anything else.
    pub fn new(code: &str) -> Option<Self> {
        match code.as_bytes() {
            [a, b] if a.is_ascii_alphabetic() && b.is_ascii_alphabetic() => {
                Some(Self([a.to_ascii_uppercase(), b.to_ascii_uppercase()]))
            }
            _ => None,
        }
    }

    /// The two letters in upper case.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for CountryCode {
    type Err = CountryCodeError;

    fn from_str(code: &str) -> Result<Self, CountryCodeError> {
        Self::new(code).ok_or(CountryCodeError)
    }
}

impl fmt::Display for CountryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for CountryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not two ASCII letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a country code is two letters")]
pub struct CountryCodeError;

/// Finds the country of an address, for the audit log.
///
/// It is called by the task that writes the records, never on a request's path (although in
/// strict delivery a request waits for that task). It must not block.
pub trait CountryLookup: fmt::Debug + Send + Sync + 'static {
    /// The country, or `None` if it is not known.
    fn country(&self, ip: IpAddr) -> Option<CountryCode>;
}
