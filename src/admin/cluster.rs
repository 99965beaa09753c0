//! `ringmq cluster list`.

use crate::admin::args::ClusterVerb;
use crate::admin::{Context, Outcome, broker};

pub async fn run(context: &Context, verb: ClusterVerb) -> Outcome {
    match verb {
        ClusterVerb::List => broker::list(context).await,
    }
}
