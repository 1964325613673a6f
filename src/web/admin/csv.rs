//! `GET /keys/{id}/audit.csv`: the requests of a key as a file.

use std::borrow::Cow;
use std::error::Error;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use csv::{Terminator, WriterBuilder};
use futures_util::stream;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};

use crate::audit::filter::AuditFilter;
use crate::audit::log::{AuditCursor, AuditPage, AuditQuery, Position};
use crate::audit::record::{AuditEvent, AuditRecord};
use crate::key::id::KeyId;
use crate::manager::KeyManager;
use crate::runtime::clock::Timestamp;

/// The most rows of a file, without its header.
pub(super) const MAX_ROWS: usize = 100_000;

const HEADER: [&str; 9] =
    ["timestamp", "method", "endpoint", "ip", "country", "status", "outcome", "count", "secret"];

/// The file that begins with this page. The others are read while the client takes them. If
/// one cannot be read, the connection breaks, so that a part is not taken for the whole.
pub(super) fn file(keys: KeyManager, key: KeyId, query: AuditQuery, first: AuditPage) -> Response {
    let disposition = format!("attachment; filename=\"{}\"", name(key, &query.filter));
    let file = File { keys, query, next: Next::First(first), left: MAX_ROWS };
    let headers = [
        (CONTENT_TYPE, "text/csv; charset=utf-8; header=present".to_owned()),
        (CONTENT_DISPOSITION, disposition),
    ];
    (headers, Body::from_stream(stream::try_unfold(file, File::next))).into_response()
}

struct File {
    keys: KeyManager,
    query: AuditQuery,
    next: Next,
    /// How many rows it may still have.
    left: usize,
}

enum Next {
    First(AuditPage),
    Older(AuditCursor),
    End,
}

type Failure = Box<dyn Error + Send + Sync>;

impl File {
    /// The next part, and what follows.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Failure> {
        let mut table = WriterBuilder::new().terminator(Terminator::CRLF).from_writer(Vec::new());
        let page = match self.next {
            Next::End => return Ok(None),
            Next::First(page) => {
                table.write_record(HEADER)?;
                page
            }
            Next::Older(cursor) => {
                self.query = self.query.at(Position::Before(cursor));
                let page = self.keys.audit_page(&self.query).await;
                page.ok_or("the service has no readable audit log")??
            }
        };
        for record in page.records.iter().take(self.left) {
            if let Some(row) = row(record) {
                table.write_record(row.iter().map(|cell| defused(cell)))?;
            }
        }
        self.left = self.left.saturating_sub(page.records.len());
        self.next = match page.older {
            Some(older) if self.left > 0 => Next::Older(older),
            _ => Next::End,
        };
        Ok(Some((table.into_inner()?.into(), self)))
    }
}

fn row(record: &AuditRecord) -> Option<[Cow<'_, str>; HEADER.len()]> {
    let AuditEvent::Request(request) = &record.event else { return None };
    let optional = |text: Option<String>| Cow::Owned(text.unwrap_or_default());
    Some([
        record.at.to_string().into(),
        request.method.as_ref().into(),
        request.endpoint.as_ref().into(),
        optional(request.ip.map(|ip| ip.to_string())),
        optional(request.country.as_ref().map(|country| country.as_str().to_owned())),
        optional(request.status.map(|status| status.to_string())),
        request.outcome.as_str().into(),
        request.count.to_string().into(),
        request.secret.as_str().into(),
    ])
}

/// What a spreadsheet would run as a formula begins with an apostrophe: at the start of a
/// cell, and where it would split the cell if it separates by semicolons or tabs.
fn defused(cell: &str) -> String {
    let mut defused = String::with_capacity(cell.len());
    let mut is_start = true;
    for c in cell.chars() {
        if is_start && matches!(c, '=' | '+' | '-' | '@' | '\t' | '\r' | '\n') {
            defused.push('\'');
        }
        defused.push(c);
        // A quote at the start of a split cell vanishes when it is read.
        is_start = matches!(c, ';' | '\t') || (is_start && c == '"');
    }
    defused
}

/// The name of the file, with its filters.
fn name(key: KeyId, filter: &AuditFilter) -> String {
    let AuditFilter { outcome, status, method, ip, since, until } = filter;
    let time = |word: &str, at: &Option<Timestamp>| at.map(|at| format!("{word}-{at}"));
    let parts = [
        outcome.map(|outcome| outcome.to_string()),
        status.map(|status| status.to_string()),
        method.clone(),
        ip.map(|ip| ip.to_string()),
        time("since", since),
        time("until", until),
    ];
    let mut name = format!("requests-{key}");
    for part in parts.into_iter().flatten() {
        name.push('-');
        // The characters that every file system takes.
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
        name.extend(part.chars().map(plain));
    }
    name + ".csv"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_that_looks_like_a_formula_is_defused() {
        for cell in ["=1+1", "+1", "-1", "@SUM(A1)", "\r=1", "\n=1"] {
            assert_eq!(defused(cell), format!("'{cell}"));
        }
        for cell in ["", "/v1/a=b", "GET", "2001:db8::1", "'=1", "/a;b=1"] {
            assert_eq!(defused(cell), cell);
        }
        for (cell, safe) in [
            ("\t=1", "'\t'=1"),
            ("/a;=1;+2", "/a;'=1;'+2"),
            ("/a\t@b", "/a\t'@b"),
            ("/a;\"\"=1", "/a;\"\"'=1"),
        ] {
            assert_eq!(defused(cell), safe);
        }
    }

    #[test]
    fn the_name_of_a_file_tells_its_filters() {
        let key = KeyId::from_bytes([7; 16]);
        let all = AuditFilter::default();
        assert_eq!(name(key, &all), format!("requests-{key}.csv"));
        let filter = AuditFilter {
            outcome: "refused".parse().ok(),
            status: "4xx".parse().ok(),
            method: Some("M-\"SEARCH".to_owned()),
            ip: "203.0.113.0/24".parse().ok(),
            since: "2026-01-31T12:00:00Z".parse().ok(),
            until: None,
        };
        let filters = "refused-4xx-M-_SEARCH-203.0.113.0_24-since-2026-01-31T12_00_00Z";
        assert_eq!(name(key, &filter), format!("requests-{key}-{filters}.csv"));
    }
}
