//! One node of the controller: requests to answers, and the watch over masters while this node leads.
//!
//! A heartbeat of a master is answered with a lease only after a majority has confirmed, since the heartbeat came, that this
//! node leads: a leader that was cut off grants nothing. A lease is three quarters of the broker's timeout and counts from when
//! the broker sent the heartbeat; a master is deposed when it has been silent for the whole timeout. Source in RocketMQ:
//! `ControllerRequestProcessor`, `ControllerManager`, `DefaultBrokerHeartbeatManager`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::base::doubt::Doubt;
use crate::controller::agreement::{Agreement, NotLeader};
use crate::controller::live::{Beat, Chosen, Live, NoElection, Unfit};
use crate::controller::state::{Change, Ground, Group, Groups, Outcome, unknown_group};
use crate::controller::{ControllerOptions, node_name};
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::{Command, Encoding, FieldError, Outgoing};
use crate::wire::remoting::controller::{
    BrokerMemberGroup, BrokerReplicasInfo, ElectMasterResponseBody, ReplicaIdentity, ReplicasInfo,
    SyncStateSet,
};
use crate::wire::remoting::json;

/// How long a change may take to be agreed on.
pub const AGREEMENT_LIMIT: Duration = Duration::from_secs(3);
/// Bounds of a broker's heartbeat timeout.
const TIMEOUT_MS_MIN: u64 = 300;
const TIMEOUT_MS_MAX: u64 = 60_000;
const TIMEOUT_MS_DEFAULT: u64 = 10_000;
/// An election that no lease can stand against.
const ANY_TERM: u64 = 0;
/// Frames that wait for one broker; a broker that does not read asks for its role with its next heartbeat anyway.
pub const PUSH_FRAMES_MAX: usize = 64;

/// What is sent back.
pub type Answer = (Outgoing, Vec<u8>);

/// See the module's page.
pub struct Node<A> {
    pub options: ControllerOptions,
    pub agreement: A,
    /// What this node has heard in the term in which it leads.
    live: Mutex<Option<(u64, Live)>>,
    /// Where to tell brokers of a new master, by group and id.
    brokers: Mutex<BTreeMap<(String, u64), mpsc::Sender<Bytes>>>,
}

/// Why a request has no answer of its own.
enum Failure {
    NotLeader(Option<u64>),
    /// A code and what to do.
    Refused(i32, String),
}

impl From<NotLeader> for Failure {
    fn from(NotLeader(leader): NotLeader) -> Self {
        Self::NotLeader(leader)
    }
}

impl From<FieldError> for Failure {
    fn from(error: FieldError) -> Self {
        Self::Refused(response::CONTROLLER_INVALID_REQUEST, error.to_string())
    }
}

type Result<T> = std::result::Result<T, Failure>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What it guards is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lease that a heartbeat is worth, of a broker with that timeout.
pub fn lease_ms(timeout_ms: u64) -> u64 {
    timeout_ms / 4 * 3
}

fn id_of(command: &Command, name: &'static str) -> Result<u64> {
    let id = command.required_int(name)?;
    u64::try_from(id).map_err(|_| {
        let remark = format!("the header field '{name}' is {id}: a broker id is due");
        Failure::Refused(response::CONTROLLER_INVALID_REQUEST, remark)
    })
}

fn text_of(command: &Command, name: &'static str) -> Result<String> {
    let text = command.required_text(name)?;
    if text.is_empty() || text.len() > 255 {
        let remark = format!("the header field '{name}' needs 1 to 255 bytes");
        return Err(Failure::Refused(
            response::CONTROLLER_INVALID_REQUEST,
            remark,
        ));
    }
    Ok(text.into_owned())
}

/// An epoch, or 0 without the field.
fn epoch_of(command: &Command, name: &'static str) -> Result<u32> {
    let epoch = command.int(name)?.unwrap_or(0);
    Ok(epoch.clamp(0, u32::MAX.into()) as u32)
}

/// The fields that say who is the master of a group.
fn with_master(answer: Outgoing, group: &Group) -> Outgoing {
    let master = group.master();
    answer
        .field_if("masterBrokerId", master.map(|(id, _)| id as i64))
        .field_if(
            "masterAddress",
            master.map(|(_, replica)| replica.address.clone()),
        )
        .field_if(
            "masterHaAddress",
            master.map(|(_, replica)| replica.ha_address.clone()),
        )
        .field("masterEpoch", i64::from(group.epoch))
        .field("electedDoubt", i64::from(group.elected_doubt))
        .field("syncStateSetEpoch", i64::from(group.in_sync_epoch))
}

fn set_body(group: &Group) -> Vec<u8> {
    json::to_vec(&SyncStateSet {
        sync_state_set: group.in_sync.iter().map(|id| *id as i64).collect(),
        sync_state_set_epoch: group.in_sync_epoch as i32,
    })
}

impl<A: Agreement> Node<A> {
    pub fn new(options: ControllerOptions, agreement: A) -> Arc<Self> {
        Arc::new(Self {
            options,
            agreement,
            live: Mutex::new(None),
            brokers: Mutex::default(),
        })
    }

    fn now_ms(&self) -> u64 {
        self.agreement.now_ms()
    }

    fn group(&self, name: &str) -> Result<Group> {
        let found = self.agreement.groups(|groups| groups.0.get(name).cloned());
        found.ok_or_else(|| match unknown_group(name) {
            Outcome::Refused { code, remark } => Failure::Refused(code, remark),
            Outcome::Nothing | Outcome::Done(_) => Failure::NotLeader(None),
        })
    }

    /// Answers a request. `is_trusted`: its sender may change things. `push` leads back to it.
    pub async fn answer(
        self: &Arc<Self>,
        command: &Command,
        is_trusted: bool,
        push: &mpsc::Sender<Bytes>,
    ) -> Answer {
        let reads = matches!(
            command.code,
            request::CONTROLLER_GET_METADATA_INFO
                | request::CONTROLLER_GET_REPLICA_INFO
                | request::CONTROLLER_GET_SYNC_STATE_DATA
                | request::GET_CONTROLLER_CONFIG
        );
        if !reads && !is_trusted {
            let remark = "this request changes what the controller knows: it is taken from loopback, or from a peer that has proved \
                that it knows the secret of haSecretFile; run the tool on the controller's machine";
            return (Outgoing::error(response::NO_PERMISSION, remark), Vec::new());
        }
        if let Some(result) = self.agreement.answer(command.code, &command.body).await {
            return match result {
                Ok(body) => (Outgoing::success(), body),
                Err(remark) => (Outgoing::error(response::SYSTEM_ERROR, remark), Vec::new()),
            };
        }
        let result = match command.code {
            request::CONTROLLER_GET_METADATA_INFO => Ok(self.metadata().await),
            request::GET_CONTROLLER_CONFIG => {
                Ok((Outgoing::success(), self.options.settings.clone().into_bytes()))
            }
            request::BROKER_HEARTBEAT => self.heartbeat(command, push).await,
            request::CONTROLLER_GET_NEXT_BROKER_ID => self.next_id(command).await,
            request::CONTROLLER_APPLY_BROKER_ID => self.apply_id(command).await,
            request::CONTROLLER_REGISTER_BROKER => self.register(command, push).await,
            request::CONTROLLER_ELECT_MASTER => self.elect(command).await,
            request::CONTROLLER_ALTER_SYNC_STATE_SET => self.alter_set(command).await,
            request::CONTROLLER_GET_REPLICA_INFO => self.replica_info(command).await,
            request::CONTROLLER_GET_SYNC_STATE_DATA => self.sync_state_data(command).await,
            request::CLEAN_BROKER_DATA => self.clean(command).await,
            request::UPDATE_CONTROLLER_CONFIG => Err(Failure::Refused(
                response::SYSTEM_ERROR,
                "a controller reads its settings when it starts: change its file and start it again, one node after the other".to_owned(),
            )),
            code => Err(Failure::Refused(
                response::REQUEST_CODE_NOT_SUPPORTED,
                format!(" request type {code} not supported"),
            )),
        };
        match result {
            Ok(answer) => answer,
            Err(Failure::NotLeader(leader)) => {
                let remark = match leader.and_then(|id| self.options.members.get(&id)) {
                    Some(address) => {
                        format!("The controller is not in leader state: {address} leads")
                    }
                    None => "The controller is not in leader state, and nobody leads at the moment"
                        .to_owned(),
                };
                (
                    Outgoing::error(response::CONTROLLER_NOT_LEADER, remark),
                    Vec::new(),
                )
            }
            Err(Failure::Refused(code, remark)) => (Outgoing::error(code, remark), Vec::new()),
        }
    }

    async fn metadata(&self) -> Answer {
        let leader = self.agreement.leader().await;
        let address = leader.and_then(|id| self.options.members.get(&id)).cloned();
        let peers: Vec<String> = self
            .options
            .members
            .iter()
            .map(|(id, address)| format!("{}:{address}", node_name(*id)))
            .collect();
        let header = Outgoing::success()
            .field("group", self.options.group.clone())
            .field(
                "controllerLeaderId",
                leader.map(node_name).unwrap_or_default(),
            )
            .field("controllerLeaderAddress", address.unwrap_or_default())
            .field("isLeader", leader == Some(self.options.id))
            .field("peers", peers.join(";"));
        (header, Vec::new())
    }

    /// Makes sure that this node leads, which a majority confirms from now on, and that it has applied everything.
    async fn lead(&self) -> Result<()> {
        Ok(self.agreement.lead().await?)
    }

    /// Lets all agree on a change. Gives the group as it is then.
    async fn propose(&self, change: Change) -> Result<Option<Group>> {
        match self.agreement.change(change).await? {
            Outcome::Done(group) => Ok(group.map(|group| *group)),
            Outcome::Nothing => Ok(None),
            Outcome::Refused { code, remark } => Err(Failure::Refused(code, remark)),
        }
    }

    /// The same for a change that leaves a group.
    async fn propose_on(&self, change: Change) -> Result<Group> {
        let name = change.group().to_owned();
        match self.propose(change).await? {
            Some(group) => Ok(group),
            None => self.group(&name),
        }
    }

    /// Looks at what was heard in the term in which this node leads. What it heard in an earlier one counts no more: another
    /// leader may have granted leases since.
    fn with_live<T>(&self, look: impl FnOnce(&mut Live) -> T) -> Result<T> {
        self.with_live_of_term(|_, live| look(live))
    }

    /// A connection has ended: who sent heartbeats by it is not elected before it is heard again.
    pub fn on_gone(&self, push: &mpsc::Sender<Bytes>) {
        let mut brokers = lock(&self.brokers);
        brokers.retain(|(group, id), known| {
            let is_it = known.same_channel(push);
            if is_it {
                let _ = self.with_live(|live| live.on_gone(group, *id));
            }
            !is_it
        });
    }

    fn with_live_of_term<T>(&self, look: impl FnOnce(u64, &mut Live) -> T) -> Result<T> {
        let now = self.agreement.term();
        match lock(&self.live).as_mut() {
            Some((term, live)) if Some(*term) == now => Ok(look(*term, live)),
            _ => Err(Failure::NotLeader(None)),
        }
    }

    async fn heartbeat(&self, command: &Command, push: &mpsc::Sender<Bytes>) -> Result<Answer> {
        let name = text_of(command, "brokerName")?;
        let id = id_of(command, "brokerId")?;
        let epoch = command.int("epoch")?.unwrap_or(0);
        let mut beat = Beat {
            heard_ms: 0,
            timeout_ms: 0,
            epoch: command
                .int("logEpoch")?
                .unwrap_or(epoch)
                .clamp(0, u32::MAX.into()) as u32,
            seen_epoch: epoch_of(command, "seenEpoch")?,
            doubt: Doubt::from_number(command.int("logDoubt")?.unwrap_or(0)),
            doubtful_since_ms: 0,
            is_gone: push.is_closed(),
            max_offset: command.int("maxOffset")?.unwrap_or(0),
            priority: command.int("electionPriority")?.unwrap_or(i32::MAX.into()),
            has_resigned: command.flag("resigns"),
        };
        self.lead().await?;
        // In one step: who the master is must not change between the look and the grant.
        let (group, is_granted) = self.with_live(|live| {
            let group = self.group(&name)?;
            let Some(replica) = group
                .replicas
                .get(&id)
                .filter(|replica| !replica.address.is_empty())
            else {
                let remark =
                    format!("brokerId {id} of '{name}' is not registered here: register it");
                return Err(Failure::Refused(
                    response::CONTROLLER_BROKER_NEED_TO_BE_REGISTERED,
                    remark,
                ));
            };
            (beat.heard_ms, beat.timeout_ms) = (self.now_ms(), replica.timeout_ms);
            live.on_beat(&name, id, beat);
            let is_master = group.master == Some(id) && epoch == i64::from(group.epoch);
            let may_grant = live.may_grant(&name, beat.heard_ms);
            Ok((group, is_master && !beat.has_resigned && may_grant))
        })??;
        lock(&self.brokers).insert((name, id), push.clone());
        let lease = match is_granted {
            true => lease_ms(beat.timeout_ms),
            false => 0,
        };
        let header = with_master(Outgoing::success(), &group).field("leaseMillis", lease as i64);
        Ok((header, set_body(&group)))
    }

    async fn next_id(&self, command: &Command) -> Result<Answer> {
        let name = text_of(command, "brokerName")?;
        self.lead().await?;
        let next_id = |groups: &Groups| groups.0.get(&name).map_or(1, |group| group.next_id);
        let next = self.agreement.groups(next_id);
        let header = Outgoing::success()
            .field(
                "clusterName",
                command.text("clusterName").unwrap_or_default().into_owned(),
            )
            .field("brokerName", name)
            .field("nextBrokerId", next as i64);
        Ok((header, Vec::new()))
    }

    async fn apply_id(&self, command: &Command) -> Result<Answer> {
        let (cluster, name) = (
            text_of(command, "clusterName")?,
            text_of(command, "brokerName")?,
        );
        let change = Change::ApplyId {
            cluster: cluster.clone(),
            group: name.clone(),
            id: id_of(command, "appliedBrokerId")?,
            check_code: text_of(command, "registerCheckCode")?,
            returns: command.flag("returns"),
        };
        self.propose(change).await?;
        let header = Outgoing::success()
            .field("clusterName", cluster)
            .field("brokerName", name);
        Ok((header, Vec::new()))
    }

    async fn register(&self, command: &Command, push: &mpsc::Sender<Bytes>) -> Result<Answer> {
        let (cluster, name) = (
            text_of(command, "clusterName")?,
            text_of(command, "brokerName")?,
        );
        let id = id_of(command, "brokerId")?;
        let timeout_ms = command.int("heartbeatTimeoutMillis")?;
        let timeout_ms = timeout_ms.map_or(TIMEOUT_MS_DEFAULT, |ms| {
            (ms.max(0) as u64).clamp(TIMEOUT_MS_MIN, TIMEOUT_MS_MAX)
        });
        let change = Change::Register {
            group: name.clone(),
            id,
            check_code: command
                .text("registerCheckCode")
                .unwrap_or_default()
                .into_owned(),
            address: text_of(command, "brokerAddress")?,
            ha_address: command
                .text("brokerHaAddress")
                .unwrap_or_default()
                .into_owned(),
            timeout_ms,
        };
        let group = self.propose_on(change).await?;
        lock(&self.brokers).insert((name.clone(), id), push.clone());
        let header = with_master(Outgoing::success(), &group)
            .field("clusterName", cluster)
            .field("brokerName", name);
        Ok((header, set_body(&group)))
    }

    async fn alter_set(&self, command: &Command) -> Result<Answer> {
        let name = text_of(command, "brokerName")?;
        let wrong = |what: String| Failure::Refused(response::CONTROLLER_INVALID_REQUEST, what);
        let body: SyncStateSet =
            json::from_slice(&command.body).map_err(|error| wrong(error.to_string()))?;
        let mut set = BTreeSet::new();
        for id in body.sync_state_set {
            set.insert(u64::try_from(id).map_err(|_| wrong(format!("{id} is no broker id")))?);
        }
        let (master, now_ms) = (id_of(command, "masterBrokerId")?, self.now_ms());
        let known = self.group(&name)?;
        // Who joins has to be alive: the master may have heard it last before it died.
        let dead = self.with_live(|live| {
            let joins = set.difference(&known.in_sync);
            joins
                .copied()
                .find(|id| *id != master && !live.is_alive(&name, *id, now_ms))
        })?;
        if let Some(dead) = dead {
            let remark =
                format!("brokerId {dead} cannot join the in-sync set: it sends no heartbeats");
            return Err(Failure::Refused(
                response::CONTROLLER_BROKER_NOT_ALIVE,
                remark,
            ));
        }
        let change = Change::AlterSet {
            group: name.clone(),
            master,
            epoch: command
                .required_int("masterEpoch")?
                .clamp(0, u32::MAX.into()) as u32,
            set,
            set_epoch: body.sync_state_set_epoch.max(0) as u32,
        };
        let group = self.propose_on(change).await?;
        tracing::info!(group = name, in_sync = ?group.in_sync, epoch = group.in_sync_epoch, "the in-sync set changed");
        let header =
            Outgoing::success().field("newSyncStateSetEpoch", i64::from(group.in_sync_epoch));
        Ok((header, set_body(&group)))
    }

    async fn elect(self: &Arc<Self>, command: &Command) -> Result<Answer> {
        let name = text_of(command, "brokerName")?;
        let asked = command
            .int("brokerId")?
            .and_then(|id| u64::try_from(id).ok());
        let group = if command.flag("designateElect") {
            self.elect_designated(&name, asked).await?
        } else {
            self.elect_asked(command, &name, asked).await?
        };
        let header = with_master(Outgoing::success(), &group);
        let members = BrokerMemberGroup {
            broker_addrs: group
                .replicas
                .iter()
                .map(|(id, replica)| (id.to_string(), replica.address.clone()))
                .collect(),
            broker_name: name,
            cluster: group.cluster.clone(),
        };
        let body = ElectMasterResponseBody {
            group: members.clone(),
            broker_member_group: members,
            sync_state_set: group.in_sync.iter().map(|id| *id as i64).collect(),
        };
        Ok((header, json::to_vec(&body)))
    }

    /// A broker asks for its role: it may be the first of its group, the master that was started again, or late.
    async fn elect_asked(
        &self,
        command: &Command,
        name: &str,
        asked: Option<u64>,
    ) -> Result<Group> {
        self.lead().await?;
        let group = self.group(name)?;
        let seen_epoch = epoch_of(command, "logEpoch")?.max(epoch_of(command, "seenEpoch")?);
        let of_asked = |id| {
            let doubt = self.with_live(|live| live.doubt(name, id))?;
            let beat = Beat {
                epoch: seen_epoch,
                doubt,
                ..Beat::default()
            };
            Ok::<_, Failure>((id, beat, Ground::InSync))
        };
        let (chosen, term) = match (group.master, asked) {
            (None, Some(_)) if group.needs_operator => {
                let remark = format!(
                    "the controller has lost what it knew of '{name}', and its brokers cannot know which of them has everything: make the \
                     one that was the master last, or has most, the master with `ringmq cluster elect {name} ID`"
                );
                return Err(Failure::Refused(
                    response::CONTROLLER_ELECT_MASTER_FAILED,
                    remark,
                ));
            }
            (None, Some(asked)) => (of_asked(asked)?, ANY_TERM),
            // A new life of the master needs an epoch of its own: what it wrote last may be on no other disk.
            (Some(master), Some(asked)) if master == asked => (of_asked(asked)?, ANY_TERM),
            (None, None) => {
                let remark =
                    "the group has no master yet: say which broker is to be the first".to_owned();
                return Err(Failure::Refused(
                    response::CONTROLLER_INVALID_REQUEST,
                    remark,
                ));
            }
            (Some(master), _) => match self.replace(name, &group)? {
                (term, Ok(chosen)) => (chosen, term),
                (_, Err(NoElection::LeaseRuns)) => {
                    let remark = format!("brokerId {master} is the master");
                    return Err(Failure::Refused(
                        response::CONTROLLER_MASTER_STILL_EXIST,
                        remark,
                    ));
                }
                (_, Err(NoElection::Nobody)) => {
                    let remark = format!(
                        "the master, brokerId {master}, does not answer, and nobody else who is alive has everything"
                    );
                    return Err(Failure::Refused(
                        response::CONTROLLER_MASTER_NOT_AVAILABLE,
                        remark,
                    ));
                }
            },
        };
        self.make_master(name, &group, chosen, term).await
    }

    /// Whom to elect in the place of a silent master, which gets no lease while that is agreed on, and in which term.
    fn replace(
        &self,
        name: &str,
        group: &Group,
    ) -> Result<(u64, std::result::Result<Chosen, NoElection>)> {
        let now_ms = self.now_ms();
        let until_ms = now_ms + AGREEMENT_LIMIT.as_millis() as u64;
        self.with_live_of_term(|term, live| {
            let unclean = self.options.unclean;
            let chosen = live.replace(name, group, unclean, now_ms, until_ms);
            (term, chosen)
        })
    }

    /// An operator wants another master. The old one gets no lease any more and is given the time for its last one to end.
    async fn elect_designated(&self, name: &str, asked: Option<u64>) -> Result<Group> {
        self.lead().await?;
        let group = self.group(name)?;
        let now_ms = self.now_ms();
        let term = self.with_live_of_term(|term, _| term)?;
        let refuse = |code, remark: String| Err(Failure::Refused(code, remark));
        let chosen = match asked {
            Some(asked) => {
                let unclean = self.options.unclean;
                let fit =
                    self.with_live(|live| live.designate(name, &group, asked, unclean, now_ms))?;
                match fit {
                    Ok(chosen) => chosen,
                    Err(Unfit::IsMaster) => {
                        return refuse(
                            response::CONTROLLER_MASTER_STILL_EXIST,
                            format!("brokerId {asked} is the master already"),
                        );
                    }
                    Err(Unfit::IsSilent) => {
                        return refuse(
                            response::CONTROLLER_BROKER_NOT_ALIVE,
                            format!("brokerId {asked} sends no heartbeats"),
                        );
                    }
                    Err(Unfit::IsOutOfSync) => {
                        return refuse(
                            response::CONTROLLER_ELECT_MASTER_FAILED,
                            format!(
                                "brokerId {asked} is not in sync and may lack acknowledged messages: wait until it is, or, if the others \
                                 are lost for good, start the controllers with enableElectUncleanMaster=true"
                            ),
                        );
                    }
                    Err(Unfit::MayLack) => {
                        return refuse(
                            response::CONTROLLER_ELECT_MASTER_FAILED,
                            format!(
                                "a log of brokerId {asked} is damaged or not whole, so it may lack acknowledged messages that another \
                                 broker of the in-sync set {:?} has: start that one, or, if all of them are lost for good, start the \
                                 controllers with enableElectUncleanMaster=true",
                                group.in_sync
                            ),
                        );
                    }
                }
            }
            None => {
                let unclean = self.options.unclean;
                let found = self
                    .with_live(|live| live.choose(name, &group, group.master, unclean, now_ms))?;
                match found {
                    Some(found) => found,
                    None => {
                        return refuse(
                            response::CONTROLLER_ELECT_MASTER_FAILED,
                            "no other broker of this group is alive and in sync".to_owned(),
                        );
                    }
                }
            }
        };
        if let Some((master, replica)) = group.master() {
            let until_ms = now_ms + replica.timeout_ms;
            let agreed_ms = until_ms + AGREEMENT_LIMIT.as_millis() as u64;
            self.with_live(|live| live.withhold(name, agreed_ms))?;
            while self.now_ms() <= until_ms {
                let is_over = self.with_live(|live| {
                    live.lease_is_over(name, master, replica.timeout_ms, self.now_ms())
                })?;
                if is_over {
                    break;
                }
                self.agreement.sleep(Duration::from_millis(20)).await;
            }
        }
        self.make_master(name, &group, chosen, term).await
    }

    /// What the chosen one was known to lack when it was chosen is part of the election: it may be another process by now, which
    /// has less, and does not begin then.
    async fn make_master(
        &self,
        name: &str,
        group: &Group,
        (candidate, beat, ground): Chosen,
        term: u64,
    ) -> Result<Group> {
        let heard = self.with_live(|live| live.seen_epoch(name))?;
        let change = Change::Elect {
            group: name.to_owned(),
            candidate,
            epoch: group.epoch,
            doubt: beat.doubt.number() as u8,
            seen_epoch: beat.epoch.max(heard),
            ground,
            term,
        };
        let made = self.propose_on(change).await;
        // Without an answer the change may still be agreed on: then leases stay withheld for their time.
        if !matches!(made, Err(Failure::NotLeader(_))) {
            self.with_live(|live| live.grant_again(name))?;
        }
        let group = made?;
        self.with_live(|live| live.on_elected(name, candidate))?;
        if ground == Ground::Unclean {
            tracing::warn!(
                group = name,
                master = candidate,
                epoch = group.epoch,
                "a broker that was not in sync is the master: acknowledged messages may be lost"
            );
        } else {
            tracing::info!(
                group = name,
                master = candidate,
                epoch = group.epoch,
                "a broker is the master"
            );
        }
        self.tell(name, &group);
        Ok(group)
    }

    /// Tells all brokers of a group who is the master. One that does not hear it learns it with its next heartbeat.
    fn tell(&self, name: &str, group: &Group) {
        let body = set_body(group);
        let frame = with_master(Outgoing::oneway(request::NOTIFY_BROKER_ROLE_CHANGED), group)
            .field("brokerName", name.to_owned())
            .frame(Encoding::Json, &body);
        let mut brokers = lock(&self.brokers);
        brokers.retain(|(group, _), push| group != name || !push.is_closed());
        for ((group, _), push) in brokers.iter() {
            if group == name {
                // A full queue is a broker that does not read: it hears it with its next heartbeat.
                let _ = push.try_send(frame.clone());
            }
        }
    }

    async fn replica_info(&self, command: &Command) -> Result<Answer> {
        let name = text_of(command, "brokerName")?;
        self.lead().await?;
        let group = self.group(&name)?;
        Ok((with_master(Outgoing::success(), &group), set_body(&group)))
    }

    async fn sync_state_data(&self, command: &Command) -> Result<Answer> {
        self.lead().await?;
        let names: Vec<String> = json::from_slice(&command.body).map_err(|error| {
            Failure::Refused(response::CONTROLLER_INVALID_REQUEST, error.to_string())
        })?;
        let now_ms = self.now_ms();
        let mut info = BrokerReplicasInfo::default();
        let groups = self.agreement.groups(|groups| groups.0.clone());
        for (name, group) in groups {
            if !names.is_empty() && !names.contains(&name) {
                continue;
            }
            let mut found = ReplicasInfo {
                master_address: group
                    .master()
                    .map(|(_, replica)| replica.address.clone())
                    .unwrap_or_default(),
                master_broker_id: group.master.map_or(-1, |id| id as i64),
                master_epoch: group.epoch as i32,
                sync_state_set_epoch: group.in_sync_epoch as i32,
                ..ReplicasInfo::default()
            };
            for (id, replica) in &group.replicas {
                let identity = ReplicaIdentity {
                    alive: self.with_live(|live| live.is_alive(&name, *id, now_ms))?,
                    broker_address: replica.address.clone(),
                    broker_id: *id as i64,
                    broker_name: name.clone(),
                };
                match group.in_sync.contains(id) {
                    true => found.in_sync_replicas.push(identity),
                    false => found.not_in_sync_replicas.push(identity),
                }
            }
            info.replicas_info_table.insert(name, found);
        }
        Ok((Outgoing::success(), json::to_vec(&info)))
    }

    async fn clean(&self, command: &Command) -> Result<Answer> {
        self.lead().await?;
        let name = text_of(command, "brokerName")?;
        let group = self.group(&name)?;
        let refuse = |remark: String| {
            Failure::Refused(response::CONTROLLER_INVALID_CLEAN_BROKER_METADATA, remark)
        };
        let text = command
            .text("brokerControllerIdsToClean")
            .unwrap_or_default();
        let mut ids = Vec::new();
        for word in text
            .split(';')
            .map(str::trim)
            .filter(|word| !word.is_empty() && *word != "null")
        {
            ids.push(
                word.parse()
                    .map_err(|_| refuse(format!("'{word}' is no broker id")))?,
            );
        }
        if !command.flag("isCleanLivingBroker") {
            let now_ms = self.now_ms();
            let alive = self.with_live(|live| {
                let wanted = |id: &&u64| ids.is_empty() || ids.contains(*id);
                let mut all = group.replicas.keys().filter(wanted);
                all.find(|id| live.is_alive(&name, **id, now_ms)).copied()
            })?;
            if let Some(alive) = alive {
                return Err(refuse(format!(
                    "brokerId {alive} is alive: stop it first, or say isCleanLivingBroker"
                )));
            }
        }
        self.propose(Change::Clean { group: name, ids }).await?;
        Ok((Outgoing::success(), Vec::new()))
    }

    /// Watches over masters while this node leads, until it ends.
    pub async fn watch(self: Arc<Self>) {
        while self.agreement.news(self.options.scan).await {
            let term = self.agreement.term();
            let was = lock(&self.live).as_ref().map(|(term, _)| *term);
            if term != was {
                let node = node_name(self.options.id);
                match term {
                    Some(term) => tracing::info!(node, term, "this node leads the controllers"),
                    None => tracing::warn!(node, "this node leads the controllers no more"),
                }
                *lock(&self.live) = term.map(|term| (term, Live::new(self.now_ms())));
            }
            if term.is_some() {
                self.depose_silent_masters().await;
            }
        }
    }

    async fn depose_silent_masters(self: &Arc<Self>) {
        let groups = self.agreement.groups(|groups| groups.0.clone());
        for (name, group) in groups {
            let Some((master, _)) = group.master() else {
                continue;
            };
            // Another election of the group may be under way.
            let now_ms = self.now_ms();
            if !self
                .with_live(|live| live.may_grant(&name, now_ms))
                .unwrap_or(false)
            {
                continue;
            }
            let (term, chosen) = match self.replace(&name, &group) {
                Ok((term, Ok(chosen))) => {
                    tracing::warn!(
                        group = name,
                        master,
                        "the master is silent, or may lack something"
                    );
                    (term, chosen)
                }
                // Somebody has heard of a later master, of controllers that are gone: it would not follow this one.
                Ok((term, Err(NoElection::LeaseRuns)))
                    if self
                        .with_live(|live| {
                            live.seen_epoch(&name) > group.epoch
                                && live.is_alive(&name, master, now_ms)
                        })
                        .is_ok_and(|is_later| is_later) =>
                {
                    (term, (master, Beat::default(), Ground::InSync))
                }
                _ => continue,
            };
            if let Err(Failure::Refused(_, remark)) =
                self.make_master(&name, &group, chosen, term).await
            {
                tracing::warn!(group = name, %remark, "no election");
            }
        }
    }
}
