//! From a subscription to the filter that the shard applies: tags at once, SQL92 compiled once per text and core.
//!
//! Source: `FilterAPI.build`, `ConsumerFilterManager`, and the parse cache of `SelectorParser`.

use std::cell::RefCell;
use std::sync::Arc;

use ahash::AHashMap;

use crate::base::limits::SQL_CACHED_MAX;
use crate::broker::error::BrokerError;
use crate::broker::options::BrokerOptions;
use crate::broker::subscription::{self, ExpressionError, SQL92, is_tag_type};
use crate::shard::message::MessageFilter;
use crate::wire::remoting::body::SubscriptionData;
use crate::wire::sql::{CompiledFilter, SqlError};

/// Refuses everything but tags with `enablePropertyFilter=false`.
pub fn check_type(
    expression_type: Option<&str>,
    options: &BrokerOptions,
) -> Result<(), BrokerError> {
    if is_tag_type(expression_type) || options.property_filter {
        return Ok(());
    }
    Err(BrokerError::System(format!(
        "The broker does not support consumer to filter message by {} (enablePropertyFilter=false); subscribe by tags",
        expression_type.unwrap_or_default()
    )))
}

type Compiled = Result<Arc<CompiledFilter>, SqlError>;

/// Compiled expressions, and bad ones so that a client that insists costs nothing.
#[derive(Debug, Default)]
pub struct Filters {
    cache: RefCell<Cache>,
}

/// The least recently used text goes when it is full.
#[derive(Debug, Default)]
struct Cache {
    /// With the time of the last use.
    by_text: AHashMap<Box<str>, (u64, Compiled)>,
    uses: u64,
}

impl Filters {
    /// The filter of an expression of a type, as a header or a tool gives them.
    pub fn of(
        &self,
        expression_type: Option<&str>,
        expression: Option<&str>,
    ) -> Result<MessageFilter, ExpressionError> {
        if is_tag_type(expression_type) {
            return subscription::tag_filter(expression);
        }
        let expression_type = expression_type.unwrap_or_default().to_owned();
        let expression = expression.unwrap_or_default();
        if expression.is_empty() {
            return Err(ExpressionError::Empty { expression_type });
        }
        if expression_type != SQL92 {
            return Err(ExpressionError::UnknownType { expression_type });
        }
        Ok(MessageFilter::Sql(self.sql(expression)?))
    }

    /// The filter of what a group's heartbeat said.
    pub fn of_subscription(
        &self,
        data: &SubscriptionData,
    ) -> Result<MessageFilter, ExpressionError> {
        let kind = data.expression_type.as_deref();
        if is_tag_type(kind) {
            return Ok(subscription::filter_of(data));
        }
        self.of(kind, Some(&data.sub_string))
    }

    fn sql(&self, text: &str) -> Compiled {
        let cache = &mut *self.cache.borrow_mut();
        cache.uses += 1;
        if let Some((used, compiled)) = cache.by_text.get_mut(text) {
            *used = cache.uses;
            return compiled.clone();
        }
        if cache.by_text.len() >= SQL_CACHED_MAX {
            let oldest = cache.by_text.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(oldest) = oldest.map(|(text, _)| text.clone()) {
                cache.by_text.remove(&oldest);
            }
        }
        let compiled = CompiledFilter::compile(text).map(Arc::new);
        cache
            .by_text
            .insert(text.into(), (cache.uses, compiled.clone()));
        compiled
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_compiled_once() {
        let filters = Filters::default();
        let one = filters.sql("a = 1").unwrap();
        assert!(Arc::ptr_eq(&one, &filters.sql("a = 1").unwrap()));
        assert_eq!(filters.sql("a =").unwrap_err().column, 4);
        assert_eq!(filters.sql("a =").unwrap_err().column, 4);
    }

    #[test]
    fn the_text_that_was_not_used_for_longest_is_forgotten() {
        let filters = Filters::default();
        let kept = filters.sql("kept = 1").unwrap();
        let lost = filters.sql("lost = 1").unwrap();
        for number in 0..2 * SQL_CACHED_MAX {
            filters.sql(&format!("a = {number}")).unwrap();
            assert!(Arc::ptr_eq(&kept, &filters.sql("kept = 1").unwrap()));
        }
        assert!(filters.cache.borrow().by_text.len() <= SQL_CACHED_MAX);
        assert!(!Arc::ptr_eq(&lost, &filters.sql("lost = 1").unwrap()));
    }

    #[test]
    fn types_are_tags_or_sql_and_nothing_else() {
        let filters = Filters::default();
        assert!(matches!(
            filters.of(Some("TAG"), Some("a")),
            Ok(MessageFilter::Codes(_))
        ));
        assert!(matches!(
            filters.of(Some("SQL92"), Some("a = 1")),
            Ok(MessageFilter::Sql(_))
        ));
        assert!(matches!(
            filters.of(Some("SQL92"), None),
            Err(ExpressionError::Empty { .. })
        ));
        let error = filters.of(Some("REGEX"), Some("a.*")).unwrap_err();
        assert!(error.to_string().contains("REGEX"), "{error}");
    }
}
