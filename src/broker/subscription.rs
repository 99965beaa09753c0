//! Tag expressions: what a consumer subscribed to, as the filter that the shard applies to queue entries.
//!
//! Pure. Source: `FilterAPI.buildSubscriptionData`, `ExpressionType`, `DefaultMessageFilter`. A tag is compared by its
//! Java hash code only, as everywhere in RocketMQ; the client compares the text of what it gets.

use std::sync::Arc;

use crate::shard::message::MessageFilter;
use crate::wire::properties::tags_code;
use crate::wire::remoting::body::SubscriptionData;
use crate::wire::sql::SqlError;

/// Subscribes everything.
pub const ALL: &str = "*";
/// `ExpressionType.TAG`, also what an absent type means.
pub const TAG: &str = "TAG";
/// `ExpressionType.SQL92`.
pub const SQL92: &str = "SQL92";

/// A subscription that says nothing that can be matched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    #[error(
        "the subscription '{expression}' names no tag; write tags separated by ||, or * for all"
    )]
    NoTag { expression: String },
    #[error("the expression of type {expression_type} is empty")]
    Empty { expression_type: String },
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error("the expression type {expression_type} is not known; use TAG or SQL92")]
    UnknownType { expression_type: String },
}

/// Whether an expression type is the tag expression (`ExpressionType.isTagType`).
pub fn is_tag_type(expression_type: Option<&str>) -> bool {
    matches!(expression_type, None | Some("") | Some(TAG))
}

fn tags(expression: &str) -> impl Iterator<Item = &str> {
    expression
        .split("||")
        .map(str::trim)
        .filter(|tag| !tag.is_empty())
}

fn is_all(expression: &str) -> bool {
    expression.is_empty() || expression == ALL
}

/// The filter of a tag expression; an absent one subscribes everything.
pub fn tag_filter(expression: Option<&str>) -> Result<MessageFilter, ExpressionError> {
    let expression = expression.unwrap_or(ALL);
    if is_all(expression) {
        return Ok(MessageFilter::All);
    }
    let codes: Arc<[i64]> = tags(expression).map(tags_code).collect();
    if codes.is_empty() {
        return Err(ExpressionError::NoTag {
            expression: expression.into(),
        });
    }
    Ok(MessageFilter::Codes(codes))
}

/// The filter of what a group's heartbeat said. The client's own hashes are used, as RocketMQ does.
pub fn filter_of(subscription: &SubscriptionData) -> MessageFilter {
    if is_all(&subscription.sub_string) {
        return MessageFilter::All;
    }
    if subscription.code_set.is_empty() {
        // A client that leaves the hashes to the broker.
        return tag_filter(Some(&subscription.sub_string)).unwrap_or(MessageFilter::All);
    }
    MessageFilter::Codes(subscription.code_set.iter().copied().collect())
}

/// `FilterAPI.buildSubscriptionData` with a tag expression, as clients do.
pub fn subscription(
    topic: &str,
    expression: &str,
    sub_version: i64,
) -> Result<SubscriptionData, ExpressionError> {
    let mut data = SubscriptionData {
        topic: topic.into(),
        expression_type: Some(TAG.into()),
        sub_string: expression.into(),
        sub_version,
        ..SubscriptionData::default()
    };
    if is_all(expression) {
        data.sub_string = ALL.into();
        return Ok(data);
    }
    data.tags_set = tags(expression).map(str::to_owned).collect();
    if data.tags_set.is_empty() {
        return Err(ExpressionError::NoTag {
            expression: expression.into(),
        });
    }
    data.code_set = data.tags_set.iter().map(|tag| tags_code(tag)).collect();
    Ok(data)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_everything_match_everything() {
        for expression in [None, Some(""), Some("*")] {
            assert_eq!(tag_filter(expression).unwrap(), MessageFilter::All);
        }
    }

    #[test]
    fn tags_are_split_by_double_bars_and_trimmed() {
        let filter = tag_filter(Some(" a || b||c d ")).unwrap();
        for tag in ["a", "b", "c d"] {
            assert!(filter.matches_entry(tags_code(tag)), "{tag}");
        }
        assert!(!filter.matches_entry(tags_code("c")));
        assert!(!filter.matches_entry(0), "a message without tags");
    }

    #[test]
    fn an_expression_without_any_tag_is_an_error() {
        for expression in ["||", "  ", " || || "] {
            assert!(tag_filter(Some(expression)).is_err(), "{expression:?}");
            assert!(subscription("T", expression, 1).is_err());
        }
    }

    #[test]
    fn the_subscription_of_a_heartbeat_is_used_by_its_codes() {
        let data = subscription("T", "a || b", 7).unwrap();
        assert_eq!(data.code_set, std::collections::BTreeSet::from([97, 98]));
        assert!(filter_of(&data).matches_entry(98));
        assert!(!filter_of(&data).matches_entry(99));
        let mut without_codes = data;
        without_codes.code_set.clear();
        assert!(filter_of(&without_codes).matches_entry(97));
        assert!(!filter_of(&without_codes).matches_entry(99));
    }
}
