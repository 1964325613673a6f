//! Encoded values, for a call that may outlive its caller.

use std::error::Error;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::store::postgres::connection::Parameters;

/// One value; `None` is NULL.
#[derive(Debug)]
pub(super) struct Encoded(Result<Option<BytesMut>, String>);

impl Encoded {
    /// A value that cannot be encoded is an error of its statement.
    pub(super) fn all(parameters: &Parameters<'_>) -> Vec<(Self, Type)> {
        parameters.iter().map(|(value, kind)| (Self::one(*value, kind), kind.clone())).collect()
    }

    pub(super) fn one(value: &(dyn ToSql + Sync), kind: &Type) -> Self {
        let mut bytes = BytesMut::new();
        Self(match value.to_sql_checked(kind, &mut bytes) {
            Ok(IsNull::No) => Ok(Some(bytes)),
            Ok(IsNull::Yes) => Ok(None),
            Err(error) => Err(error.to_string()),
        })
    }

    pub(super) fn refs(values: &[(Self, Type)]) -> Vec<(&(dyn ToSql + Sync), Type)> {
        values.iter().map(|(value, kind)| (value as _, kind.clone())).collect()
    }
}

impl ToSql for Encoded {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match &self.0 {
            Ok(Some(bytes)) => {
                out.put_slice(bytes);
                Ok(IsNull::No)
            }
            Ok(None) => Ok(IsNull::Yes),
            Err(text) => Err(text.clone().into()),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoded_value_is_sent_like_the_plain_value() {
        let values: &Parameters<'_> = &[
            (&"acme", Type::TEXT),
            (&1_700_000_000_000_001_i64, Type::INT8),
            (&None::<i64>, Type::INT8),
            (&vec![&b"\0\xff"[..]], Type::BYTEA_ARRAY),
            // Not a number.
            (&"acme", Type::INT8),
        ];
        let sent = |value: &(dyn ToSql + Sync), kind| {
            let mut bytes = BytesMut::new();
            let null = value.to_sql_checked(kind, &mut bytes);
            (null.map(|null| matches!(null, IsNull::Yes)).map_err(|error| error.to_string()), bytes)
        };
        let encoded = Encoded::all(values);
        let outcomes: Vec<_> = values.iter().map(|(value, kind)| sent(*value, kind)).collect();
        let again: Vec<_> = encoded.iter().map(|(value, kind)| sent(value, kind)).collect();
        assert_eq!(again, outcomes);
        let [.., null, array, error] = &outcomes[..] else { panic!("{outcomes:?}") };
        assert_eq!((&null.0, array.0.is_ok(), error.0.is_err()), (&Ok(true), true, true));
    }
}
