//! Requests that a connected client answers through the broker: 307, 309, 223; and how any core asks any client.
//!
//! A client is asked on the core that has its connection, at most [`PATIENCE`]. What it says goes back unchanged.
//! Source: `AdminBrokerProcessor.callConsumer`, `Broker2Client`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::io::body::Body;
use crate::server::connection::InvokeError;
use crate::shard::message::{ClientAnswer, ClientCall, ShardReply, ShardRequest};
use crate::shard::meta::Member;
use crate::wire::message_id::MessageId;
use crate::wire::remoting::body::GetConsumerStatusBody;
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::{Command, Outgoing};
use crate::wire::remoting::json;

/// How long a client has for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first version that can be asked (`MQVersion.V3_1_8_SNAPSHOT`).
const VERSION_ASKABLE: i32 = 62;

impl Broker {
    /// Takes over what this core is asked as the holder of a client's connection.
    pub(super) fn serve_calls(&self) {
        let broker = self.clone();
        self.shard.set_call_handler(move |call, done| {
            let connection = broker.connections.borrow().get(&call.connection).cloned();
            let Some(connection) = connection else {
                return done(ClientAnswer::Closed);
            };
            broker.shard.spawn(async move {
                let answer = connection
                    .invoke(call.request, call.body, call.timeout)
                    .await;
                done(match answer {
                    Ok(answer) => ClientAnswer::Answered(Box::new(answer)),
                    Err(InvokeError::Timeout(_)) => ClientAnswer::Timeout,
                    Err(InvokeError::Closed) => ClientAnswer::Closed,
                });
            });
        });
    }

    /// Asks a client.
    pub(super) async fn call(
        &self,
        member: &Member,
        request: Outgoing,
        body: Bytes,
    ) -> Result<ClientAnswer, BrokerError> {
        let call = ClientCall {
            connection: member.connection,
            request,
            body,
            timeout: PATIENCE,
        };
        let core = usize::from(member.connection.core);
        match self.ask(core, ShardRequest::Call(Box::new(call))).await? {
            ShardReply::Called(answer) => Ok(answer),
            other => Err(BrokerError::unexpected(&other)),
        }
    }

    /// The member of a group that a request names.
    fn member(&self, group: &str, client_id: &str) -> Result<Member, BrokerError> {
        let meta = self.shard.meta();
        let member = meta
            .consumers
            .get(group)
            .and_then(|online| {
                let mut members = online.members.iter();
                members.find(|member| *member.client.client_id == *client_id)
            })
            .ok_or_else(|| {
                BrokerError::System(format!("The Consumer <{group}> <{client_id}> not online"))
            })?;
        if member.client.version < VERSION_ASKABLE {
            return Err(BrokerError::System(format!(
                "the consumer <{group}> <{client_id}> has version {}, which cannot be asked; it needs {VERSION_ASKABLE}",
                member.client.version
            )));
        }
        Ok(member.clone())
    }

    /// Asks a member and passes on what it says.
    async fn forward(
        &self,
        group: &str,
        client_id: &str,
        request: Outgoing,
        body: Bytes,
    ) -> Outcome {
        let member = self.member(group, client_id)?;
        match self.call(&member, request, body).await? {
            ClientAnswer::Answered(answer) => Ok(Answer {
                head: passed_on(&answer),
                body: Body::Bytes(answer.body),
            }),
            ClientAnswer::Timeout => Err(BrokerError::ClientTimeout(format!(
                "consumer <{group}> <{client_id}> Timeout: no answer within {} s",
                PATIENCE.as_secs()
            ))),
            ClientAnswer::Closed => Err(BrokerError::System(format!(
                "The Consumer <{group}> <{client_id}> not online"
            ))),
        }
    }

    /// 307.
    pub(super) async fn running_info(self, command: Command) -> Outcome {
        let group = command.required_text("consumerGroup")?.into_owned();
        let client_id = command.required_text("clientId")?.into_owned();
        let request = Outgoing::request(request::GET_CONSUMER_RUNNING_INFO)
            .field("consumerGroup", group.clone())
            .field("clientId", client_id.clone())
            .field("jstackEnable", command.flag("jstackEnable"));
        self.forward(&group, &client_id, request, Bytes::new())
            .await
    }

    /// 309: the stored message goes along as the body.
    pub(super) async fn consume_directly(self, command: Command) -> Outcome {
        let group = command.required_text("consumerGroup")?.into_owned();
        let client_id = command.required_text("clientId")?.into_owned();
        let message_id = command.required_text("msgId")?.into_owned();
        let id = MessageId::parse(&message_id)
            .map_err(|error| BrokerError::System(error.to_string()))?;
        let record = self.stored_record(id.offset.0).await?;
        let topic = command.text("topic").map(|topic| topic.into_owned());
        let topic_flag = topic
            .as_deref()
            .and_then(|topic| self.known_topic(topic))
            .map_or(0, |topic| topic.config.topic_sys_flag);
        let group_flag = self
            .known_group(&group)
            .map_or(0, |config| config.group_sys_flag);
        let request = Outgoing::request(request::CONSUME_MESSAGE_DIRECTLY)
            .field("consumerGroup", group.clone())
            .field("clientId", client_id.clone())
            .field("msgId", message_id)
            .field("brokerName", self.options.broker.clone())
            .field_if("topic", topic)
            .field("topicSysFlag", topic_flag)
            .field("groupSysFlag", group_flag);
        self.forward(&group, &client_id, request, record).await
    }

    /// 223: asks one or all members of a group for their offsets (221).
    pub(super) async fn consumer_status(self, command: Command) -> Outcome {
        let topic: Arc<str> = Arc::from(command.required_text("topic")?);
        let group: Arc<str> = Arc::from(command.required_text("group")?);
        // The field has an address by name and a client id by use.
        let only = command
            .text("clientAddr")
            .filter(|id| !id.trim().is_empty())
            .map(|id| id.into_owned());
        let online = self.shard.meta().consumers.get(&group).cloned();
        let online = online.ok_or_else(|| BrokerError::NotOnline {
            group: group.to_string(),
        })?;
        let mut consumer_table = BTreeMap::new();
        for member in &online.members {
            let id = member.client.client_id.to_string();
            if only.as_ref().is_some_and(|only| *only != id) {
                continue;
            }
            let request = Outgoing::request(request::GET_CONSUMER_STATUS_FROM_CLIENT)
                .field("topic", topic.clone())
                .field("group", group.clone());
            if let ClientAnswer::Answered(answer) = self.call(member, request, Bytes::new()).await?
                && answer.code == response::SUCCESS
                && let Ok(status) = json::from_slice::<GetConsumerStatusBody>(&answer.body)
            {
                consumer_table.insert(id, status.message_queue_table);
            }
        }
        if consumer_table.is_empty() {
            return Err(BrokerError::System(format!(
                "no member of the group '{group}' told its offsets of the topic '{topic}'"
            )));
        }
        Answer::json(&GetConsumerStatusBody {
            consumer_table,
            ..GetConsumerStatusBody::default()
        })
    }
}

/// Code, remark and fields of a client's answer, for whoever asked.
fn passed_on(answer: &Command) -> Outgoing {
    let mut head = Outgoing::success().with_code(answer.code);
    if let Some(remark) = &answer.remark {
        head = head.with_remark(remark.clone());
    }
    for (name, value) in answer.fields() {
        head = head.field(name.into_owned(), value.into_owned());
    }
    head
}
