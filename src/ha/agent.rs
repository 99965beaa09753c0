//! What a broker under a controller asks, and what it makes of the answers. Sans-io: whoever drives it sends, waits and stores.
//!
//! [`Agent`] goes round: an id, a registration, a heartbeat, a role. [`SetKeeper`] runs beside it and has the controller agree on
//! who is in sync. [`Heard`] is the controller's last word for all threads of the process: which role to open the logs in, and
//! when to open them again. What cores have to know of it is in [`Control`]. In production `app/controlled.rs` drives them over
//! sockets, in tests/sim over the simulated network. Source in RocketMQ: `ReplicasManager`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::doubt::Doubt;
use crate::base::offset::LogId;
use crate::ha::control::{Control, Proposal};
use crate::store::commit_log::repair::Look;
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::{Command, Outgoing};
use crate::wire::remoting::controller::{ElectMasterResponseBody, SyncStateSet};
use crate::wire::remoting::json;

/// Pause after something that failed, before it is tried again.
pub const PAUSE: Duration = Duration::from_millis(100);
/// A change of master or set is agreed on by then, or asked for again.
pub const CHANGE_TIMEOUT: Duration = Duration::from_secs(4);

/// What the controller said last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    pub epoch: u32,
    pub master: Option<u64>,
    /// Where the master takes slaves.
    pub master_address: String,
    /// Where it takes clients.
    pub master_clients: String,
    pub in_sync: BTreeSet<u64>,
    pub in_sync_epoch: u32,
    /// What the controller knew that its logs lack when it was elected.
    pub elected_doubt: Doubt,
}

/// What this broker is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nobody has said.
    Unknown,
    /// Of this epoch.
    Master(u32),
    Slave,
}

impl Word {
    /// From an answer of the controller, or from what it says of its own accord.
    pub fn read(command: &Command) -> Self {
        let number = |name| command.int(name).ok().flatten();
        let text = |name| command.text(name).unwrap_or_default().into_owned();
        let set: SyncStateSet = json::from_slice(&command.body).unwrap_or_default();
        Self {
            epoch: number("masterEpoch").unwrap_or(0).clamp(0, u32::MAX.into()) as u32,
            master: number("masterBrokerId").and_then(|id| u64::try_from(id).ok()),
            master_address: text("masterHaAddress"),
            master_clients: text("masterAddress"),
            in_sync: set
                .sync_state_set
                .iter()
                .filter_map(|id| u64::try_from(*id).ok())
                .collect(),
            in_sync_epoch: set.sync_state_set_epoch.max(0) as u32,
            elected_doubt: Doubt::from_number(number("electedDoubt").unwrap_or(0)),
        }
    }

    fn role_of(&self, id: u64) -> Wanted {
        match self.master {
            _ if id == 0 => Wanted::Unknown,
            Some(master) if master == id => Wanted::Master(self.epoch),
            Some(_) => Wanted::Slave,
            // Nobody is the master: whoever has a store can be read from.
            None => Wanted::Unknown,
        }
    }
}

/// Called when the word has changed, with the word if another broker is the master and says where.
pub type OnWord = Box<dyn Fn(Option<&Word>) + Send + Sync>;

/// The controller's last word. See the module's page.
pub struct Heard {
    control: Arc<Control>,
    word: Mutex<Word>,
    on_word: OnWord,
}

/// How the logs are to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    pub role: Wanted,
    /// Epoch of a master; 0 of a slave.
    pub master_epoch: u32,
    /// Epoch of the group as it is heard of now.
    pub group_epoch: u32,
    /// The in-sync set at the election and its epoch.
    pub in_sync: (BTreeSet<u64>, u32),
}

impl Heard {
    pub fn new(control: Arc<Control>, on_word: OnWord) -> Arc<Self> {
        Arc::new(Self {
            control,
            word: Mutex::default(),
            on_word,
        })
    }

    fn locked(&self) -> MutexGuard<'_, Word> {
        // It is whole between any two statements.
        self.word.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn word(&self) -> Word {
        self.locked().clone()
    }

    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// The controller has spoken. An older word than the last one counts no more.
    pub fn hear(&self, word: Word) {
        let mut known = self.locked();
        if word.epoch < known.epoch || word == *known {
            return;
        }
        let own = self.control.id();
        if word.master == Some(own)
            && word.in_sync.len() > 1
            && self.control.doubt() > word.elected_doubt
        {
            // Who elected it did not know what it lacks; others may have that.
            drop(known);
            return self.control.hear_epoch(word.epoch);
        }
        if word.epoch > known.epoch || word.master != known.master {
            tracing::info!(
                master = word.master,
                epoch = word.epoch,
                own,
                "the controller says who is the master"
            );
        }
        self.control.hear_epoch(word.epoch);
        let is_own = word.master == Some(own);
        if is_own && word.epoch == self.control.master_epoch() {
            self.control
                .on_committed(word.in_sync.clone(), word.in_sync_epoch);
        }
        *known = word.clone();
        drop(known);
        self.control.bell().ring();
        (self.on_word)(Some(&word).filter(|word| !is_own && !word.master_address.is_empty()));
    }

    /// The role to open the logs in, once there is one and its epoch is durably known.
    pub fn opening(&self) -> Option<Opening> {
        let word = self.locked();
        if word.epoch > self.control.saved_epoch() || self.is_to_narrow(&word) {
            return None;
        }
        let role = word.role_of(self.control.id());
        let master_epoch = match role {
            Wanted::Unknown => return None,
            Wanted::Master(epoch) => epoch,
            Wanted::Slave => 0,
        };
        Some(Opening {
            role,
            master_epoch,
            group_epoch: word.epoch,
            in_sync: (word.in_sync.clone(), word.in_sync_epoch),
        })
    }

    /// A new master begins alone: what it has and the others have not is shown from then on, so none of them may be elected
    /// unless it has had that confirmed. Until it has asked for that, each of them still can.
    fn is_to_narrow(&self, word: &Word) -> bool {
        word.master == Some(self.control.id())
            && word.in_sync.len() > 1
            && self.control.begun_epoch() != word.epoch
    }

    /// The set to narrow, if that is due.
    fn to_narrow(&self) -> Option<Word> {
        let word = self.locked();
        self.is_to_narrow(&word).then(|| word.clone())
    }

    /// Whether logs that were opened in this role have to be closed, to be opened in another one or to be cut.
    pub fn is_over(&self, role: Wanted) -> bool {
        let wanted = self.locked().role_of(self.control.id());
        let is_other = wanted != role && wanted != Wanted::Unknown;
        is_other || self.control.wants_restart()
    }
}

/// Which broker of its group this is, durable in the store's directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub cluster: String,
    pub broker_name: String,
    pub broker_id: u64,
    /// What this broker chose: another one that claims the same id has another code.
    pub check_code: String,
    /// The greatest epoch of its group that it has heard of: if all controllers are lost, none is given twice.
    #[serde(default)]
    pub seen_epoch: u32,
}

/// What the logs of a store hold, before any of them is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Whether any of them is a slave's.
    pub was_replica: bool,
    /// Epoch of the last batch, end, and what it may lack.
    pub logs: Vec<(LogId, u32, u64, Doubt)>,
}

impl Looked {
    pub fn of(looks: &[(LogId, Look)]) -> Self {
        let log = |(log, look): &(LogId, Look)| (*log, look.epoch, look.end, look.doubt);
        Self {
            was_replica: looks.iter().any(|(_, look)| look.was_replica),
            logs: looks.iter().map(log).collect(),
        }
    }
}

/// What the agent says of its broker.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub cluster: String,
    pub broker_name: String,
    /// Of clients.
    pub address: String,
    /// Of slaves.
    pub ha_address: String,
    /// `controllerHeartBeatTimeoutMills`
    pub timeout_ms: u64,
    /// `brokerHeartbeatInterval`
    pub heartbeat_ms: u64,
    /// `brokerElectionPriority`
    pub priority: u32,
    /// Random text, for a broker that has no id yet.
    pub check_code: String,
}

/// A request to the leading controller; [`Agent::request`] makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    NextId,
    ApplyId,
    /// For the id that this broker has, of a controller that does not know it.
    ReturnId,
    Register,
    Heartbeat,
    Elect,
    /// That the in-sync set is this new master alone.
    Narrow,
}

/// What has to be done next; each is given once, and answered with the `on_` function of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read both identities: the one that is this broker's, and the one that it has applied for.
    Load,
    /// Store durably what is applied for.
    SaveWish(Identity),
    /// Store durably who this broker is, and forget what was applied for.
    SaveOwn(Identity),
    /// Forget durably what was applied for.
    DropWish,
    /// Look at the logs of the store.
    Look,
    Ask(Ask),
    /// Until the clock of [`Control`] says so, or its epoch as a master changes, or the node is over.
    Wait {
        until_ns: u64,
    },
    /// Everything was said.
    Over,
}

/// Why a turn ended early. It is tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Trouble {
    pub text: String,
    /// The controller has answered, so the connection is as good as before.
    pub is_answer: bool,
}

const WAS_SLAVE: &str = "this store was a slave's, and the controller has no master for its group: start the broker that was the master, \
    or make this one the master with `ringmq cluster elect`";

const LACKS: &str = "a log of this broker is damaged, or ends with what may be more than the torn write of a crash: it is not elected \
    before another member of the in-sync set was, or was looked at. If none of those will come back, start the \
    controllers with enableElectUncleanMaster=true";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Begin,
    NextId,
    SaveWish,
    ApplyId,
    SaveOwn,
    DropWish,
    Look,
    Register,
    ReturnId,
    /// After [`Stage::ReturnId`].
    RegisterAgain,
    Heartbeat,
    /// An epoch was heard of that the store does not remember yet.
    SaveSeen,
    Narrow,
    Elect,
    Pause {
        until_ns: u64,
        is_failure: bool,
    },
    /// The driver is at it.
    Waiting,
}

/// See the module's page.
pub struct Agent {
    options: AgentOptions,
    heard: Arc<Heard>,
    control: Arc<Control>,
    stage: Stage,
    /// What the driver is at.
    current: Stage,
    is_loaded: bool,
    own: Option<Identity>,
    wish: Option<Identity>,
    is_registered: bool,
    /// As the logs were before this process opened one.
    looked: Option<Looked>,
    /// Epoch of the group when this process registered: one in which it was elected since then is its own.
    first_epoch: Option<u32>,
    /// The epoch that is being stored.
    saving_epoch: u32,
    /// The set could not be narrowed: what it is by now says the next heartbeat.
    is_set_stale: bool,
    /// This process has been made, or found, what it is: a master of an earlier life needs a new epoch first.
    has_asked: bool,
    is_over: bool,
    begun_ns: u64,
    /// When the last heartbeat was sent, and the epoch that it was for.
    sent_ns: u64,
    told_epoch: u32,
    /// The last heartbeat said good-bye.
    told_over: bool,
    /// It said that this broker acknowledges nothing any more.
    told_resigned: bool,
    told_doubt: Doubt,
    /// Why [`Step::DropWish`] was due.
    after_drop: Option<Trouble>,
}

fn is_forgotten(code: i32) -> bool {
    matches!(
        code,
        response::CONTROLLER_BROKER_NEED_TO_BE_REGISTERED
            | response::CONTROLLER_BROKER_METADATA_NOT_EXIST
    )
}

impl Agent {
    pub fn new(options: AgentOptions, heard: Arc<Heard>) -> Self {
        Self {
            options,
            control: heard.control.clone(),
            heard,
            stage: Stage::Begin,
            current: Stage::Begin,
            is_loaded: false,
            own: None,
            wish: None,
            is_registered: false,
            looked: None,
            first_epoch: None,
            saving_epoch: 0,
            is_set_stale: false,
            has_asked: false,
            is_over: false,
            begun_ns: 0,
            sent_ns: 0,
            told_epoch: 0,
            told_over: false,
            told_resigned: false,
            told_doubt: Doubt::None,
            after_drop: None,
        }
    }

    /// The node has ended for good: what is left is to say good-bye.
    pub fn end(&mut self) {
        self.is_over = true;
    }

    /// What to do now.
    pub fn next_step(&mut self) -> Step {
        if let Stage::Pause {
            until_ns,
            is_failure,
        } = self.stage
        {
            // A new master wants its first lease at once; an epoch that was heard of waits to be stored.
            let is_new = (self.control.master_epoch() != self.told_epoch
                || self.control.gives_up() != self.told_resigned
                || self.control.doubt() != self.told_doubt
                || self.has_unsaved_epoch()
                || self.heard.to_narrow().is_some())
                && !is_failure;
            if !is_new && !self.is_over && self.control.now_ns() < until_ns {
                return Step::Wait { until_ns };
            }
            self.stage = Stage::Begin;
        }
        if self.stage == Stage::Begin {
            self.begun_ns = self.control.now_ns();
            self.stage = match (&self.own, &self.wish) {
                _ if self.is_over && !self.is_registered => return Step::Over,
                _ if !self.is_loaded => {
                    self.current = Stage::Begin;
                    self.stage = Stage::Waiting;
                    return Step::Load;
                }
                (Some(_), _) if self.has_unsaved_epoch() && !self.is_over => Stage::SaveSeen,
                (Some(_), _)
                    if self.is_registered
                        && !self.is_over
                        && !self.is_set_stale
                        && self.heard.to_narrow().is_some() =>
                {
                    Stage::Narrow
                }
                (Some(_), _) if self.is_registered => Stage::Heartbeat,
                (Some(_), _) if self.looked.is_none() => Stage::Look,
                (Some(_), _) => Stage::Register,
                (None, Some(_)) => Stage::ApplyId,
                (None, None) => Stage::NextId,
            };
        }
        self.current = self.stage;
        self.stage = Stage::Waiting;
        let identity = |known: &Option<Identity>| known.clone().map_or(Step::Load, Step::SaveWish);
        match self.current {
            Stage::NextId => Step::Ask(Ask::NextId),
            Stage::SaveWish => identity(&self.wish),
            Stage::ApplyId => Step::Ask(Ask::ApplyId),
            Stage::SaveOwn => self.wish.clone().map_or(Step::Load, Step::SaveOwn),
            Stage::SaveSeen => {
                self.saving_epoch = self.control.epoch();
                let seen = |own: Identity| Identity {
                    seen_epoch: self.saving_epoch,
                    ..own
                };
                self.own
                    .clone()
                    .map_or(Step::Load, |own| Step::SaveOwn(seen(own)))
            }
            Stage::DropWish => Step::DropWish,
            Stage::Register | Stage::RegisterAgain => Step::Ask(Ask::Register),
            Stage::ReturnId => Step::Ask(Ask::ReturnId),
            Stage::Heartbeat => Step::Ask(Ask::Heartbeat),
            Stage::Look => Step::Look,
            Stage::Elect => Step::Ask(Ask::Elect),
            Stage::Narrow => Step::Ask(Ask::Narrow),
            Stage::Begin | Stage::Pause { .. } | Stage::Waiting => {
                unreachable!("the driver answers a step before it asks for the next one")
            }
        }
    }

    fn named(&self, code: i32) -> Outgoing {
        Outgoing::request(code)
            .field("clusterName", self.options.cluster.clone())
            .field("brokerName", self.options.broker_name.clone())
    }

    fn has_unsaved_epoch(&self) -> bool {
        let epoch = self.control.epoch();
        self.own.as_ref().is_some_and(|own| own.seen_epoch < epoch)
    }

    /// The greatest epoch that this broker has ever heard of, or has in its logs.
    fn seen_epoch(&self) -> u32 {
        let (log_epoch, _) = self.control.log_state();
        let stored = self.own.as_ref().map_or(0, |own| own.seen_epoch);
        log_epoch.max(self.control.epoch()).max(stored)
    }

    fn id(&self) -> u64 {
        self.own.as_ref().map_or(0, |own| own.broker_id)
    }

    /// The request, at the moment when it is sent: a lease counts from here, however long the answer takes.
    pub fn request(&mut self, ask: Ask) -> Outgoing {
        let options = &self.options;
        let apply = |identity: &Option<Identity>| {
            let (id, code) = identity.as_ref().map_or((0, ""), |identity| {
                (identity.broker_id, &*identity.check_code)
            });
            self.named(request::CONTROLLER_APPLY_BROKER_ID)
                .field("appliedBrokerId", id as i64)
                .field("registerCheckCode", code.to_owned())
        };
        match ask {
            Ask::NextId => self.named(request::CONTROLLER_GET_NEXT_BROKER_ID),
            Ask::ApplyId => apply(&self.wish),
            Ask::ReturnId => apply(&self.own).field("returns", true),
            Ask::Register => {
                let code = self.own.as_ref().map(|own| own.check_code.clone());
                self.named(request::CONTROLLER_REGISTER_BROKER)
                    .field("registerCheckCode", code.unwrap_or_default())
                    .field("brokerId", self.id() as i64)
                    .field("brokerAddress", options.address.clone())
                    .field("brokerHaAddress", options.ha_address.clone())
                    .field("heartbeatTimeoutMillis", options.timeout_ms as i64)
            }
            Ask::Heartbeat => {
                let resigns = self.control.gives_up() || self.is_over;
                let (log_epoch, log_bytes) = self.control.log_state();
                self.told_epoch = self.control.master_epoch();
                self.sent_ns = self.control.now_ns();
                self.told_over = self.is_over;
                self.told_resigned = self.control.gives_up();
                self.told_doubt = self.control.doubt();
                self.named(request::BROKER_HEARTBEAT)
                    .field("brokerAddr", self.options.address.clone())
                    .field("brokerId", self.id() as i64)
                    .field("epoch", i64::from(self.told_epoch))
                    .field("logEpoch", i64::from(log_epoch))
                    .field("seenEpoch", i64::from(self.seen_epoch()))
                    .field("logDoubt", self.told_doubt.number())
                    .field("maxOffset", log_bytes as i64)
                    .field("confirmOffset", log_bytes as i64)
                    .field("heartbeatTimeoutMillis", self.options.timeout_ms as i64)
                    .field("electionPriority", i64::from(self.options.priority))
                    .field("resigns", resigns)
            }
            Ask::Narrow => {
                let epoch = self.heard.word().epoch;
                Outgoing::request(request::CONTROLLER_ALTER_SYNC_STATE_SET)
                    .field("brokerName", self.options.broker_name.clone())
                    .field("masterBrokerId", self.id() as i64)
                    .field("masterEpoch", i64::from(epoch))
            }
            Ask::Elect => {
                let (log_epoch, _) = self.control.log_state();
                let seen_epoch = self.seen_epoch();
                self.named(request::CONTROLLER_ELECT_MASTER)
                    .field("brokerId", self.id() as i64)
                    .field("designateElect", false)
                    .field("logEpoch", i64::from(log_epoch))
                    .field("seenEpoch", i64::from(seen_epoch))
            }
        }
    }

    /// The body of a request.
    pub fn body(&self, ask: Ask) -> Vec<u8> {
        match ask {
            Ask::Narrow => json::to_vec(&SyncStateSet {
                sync_state_set: [self.id() as i64].into_iter().collect(),
                sync_state_set_epoch: self.heard.word().in_sync_epoch as i32,
            }),
            _ => Vec::new(),
        }
    }

    /// How long an answer is waited for.
    pub fn limit(&self, ask: Ask) -> Duration {
        match ask {
            Ask::Elect | Ask::Narrow => CHANGE_TIMEOUT,
            _ => Duration::from_millis(self.options.timeout_ms / 2),
        }
    }

    fn pause(&mut self, pause: Duration, is_failure: bool) {
        self.stage = Stage::Pause {
            until_ns: self.begun_ns.saturating_add(pause.as_nanos() as u64),
            is_failure,
        };
    }

    fn fail(&mut self, trouble: Trouble) -> Result<(), Trouble> {
        self.is_set_stale |= self.current == Stage::Narrow;
        if self.is_over {
            // It was only to say good-bye.
            self.is_registered = false;
        }
        // A failure costs its pause, however late it came.
        self.begun_ns = self.begun_ns.max(self.control.now_ns());
        self.pause(PAUSE, true);
        Err(trouble)
    }

    /// What the driver was to do could not be done: no connection, no answer, an error of the disk.
    pub fn on_failed(&mut self, text: impl Into<String>) -> Result<(), Trouble> {
        self.fail(Trouble {
            text: text.into(),
            is_answer: false,
        })
    }

    pub fn on_loaded(
        &mut self,
        own: Option<Identity>,
        wish: Option<Identity>,
    ) -> Result<(), Trouble> {
        if let Some(own) = &own {
            self.check_name(own)?;
            self.control.set_id(own.broker_id);
            self.control.hear_epoch(own.seen_epoch);
            self.control.note_saved_epoch(own.seen_epoch);
        }
        (self.own, self.wish, self.is_loaded) = (own, wish, true);
        self.stage = Stage::Begin;
        Ok(())
    }

    fn check_name(&mut self, own: &Identity) -> Result<(), Trouble> {
        let ours = &self.options.broker_name;
        if own.broker_name == *ours {
            return Ok(());
        }
        let text = format!(
            "this store is of group '{}', the configuration says brokerName={ours}",
            own.broker_name
        );
        self.on_failed(text)
    }

    pub fn on_saved(&mut self) -> Result<(), Trouble> {
        self.stage = match self.current {
            Stage::SaveOwn => {
                self.own = self.wish.take();
                self.control.set_id(self.id());
                Stage::Begin
            }
            Stage::SaveSeen => {
                let epoch = self.saving_epoch;
                if let Some(own) = &mut self.own {
                    own.seen_epoch = epoch;
                }
                self.control.note_saved_epoch(epoch);
                Stage::Begin
            }
            Stage::DropWish => {
                // Another broker was faster: the next try asks for another id.
                self.wish = None;
                if let Some(trouble) = self.after_drop.take() {
                    return self.fail(trouble);
                }
                Stage::Begin
            }
            _ => Stage::ApplyId,
        };
        Ok(())
    }

    /// What the logs of the store hold.
    pub fn on_looked(&mut self, looked: Looked) -> Result<(), Trouble> {
        for &(log, epoch, end, doubt) in &looked.logs {
            self.control.note_log(log, epoch, end);
            self.control.note_doubt(log, doubt);
        }
        self.looked = Some(looked);
        self.stage = Stage::Begin;
        Ok(())
    }

    /// Stands for election, unless this broker cannot know whether it has everything and others may.
    fn stand(&mut self, word: &Word, is_first: bool) -> Result<(), Trouble> {
        if self.has_unsaved_epoch() {
            // Whoever waits for its role waits for that.
            self.stage = Stage::Begin;
            return Ok(());
        }
        let own = self.id();
        let has_others = word.master.is_none_or(|master| master == own)
            && word.in_sync.iter().any(|id| *id != own);
        let refusal = if is_first && self.looked.as_ref().is_some_and(|l| l.was_replica) {
            WAS_SLAVE
        } else if has_others && self.told_doubt > Doubt::None {
            LACKS
        } else {
            self.stage = Stage::Elect;
            return Ok(());
        };
        let result = self.fail(Trouble {
            text: refusal.to_owned(),
            is_answer: true,
        });
        // Its doubt may be over by then, and it has to be heard meanwhile.
        self.rest();
        result
    }

    pub fn on_answer(&mut self, answer: &Command) -> Result<(), Trouble> {
        if answer.code != response::SUCCESS {
            return self.on_refused(answer);
        }
        match self.current {
            Stage::NextId => {
                let next = answer.int("nextBrokerId").ok().flatten();
                self.wish = Some(Identity {
                    cluster: self.options.cluster.clone(),
                    broker_name: self.options.broker_name.clone(),
                    broker_id: next.and_then(|id| u64::try_from(id).ok()).unwrap_or(1),
                    check_code: self.options.check_code.clone(),
                    seen_epoch: 0,
                });
                self.stage = Stage::SaveWish;
            }
            Stage::ApplyId => self.stage = Stage::SaveOwn,
            Stage::ReturnId => self.stage = Stage::RegisterAgain,
            Stage::Register | Stage::RegisterAgain => {
                self.is_registered = true;
                let word = Word::read(answer);
                self.first_epoch.get_or_insert(word.epoch);
                // A master of an earlier life has to be elected again before it is one.
                if word.master != Some(self.id()) {
                    self.heard.hear(word);
                }
                self.stage = Stage::Heartbeat;
            }
            Stage::Heartbeat => return self.on_lease(answer),
            Stage::Narrow => {
                let agreed = Word::read(answer);
                if let Some(word) = self.heard.to_narrow() {
                    self.heard.hear(Word {
                        in_sync: agreed.in_sync,
                        in_sync_epoch: agreed.in_sync_epoch,
                        ..word
                    });
                }
                self.stage = Stage::Begin;
            }
            Stage::Elect => {
                let mut word = Word::read(answer);
                // The body of this answer is another one.
                let body: ElectMasterResponseBody = match json::from_slice(&answer.body) {
                    Ok(body) => body,
                    // Without the set it would be waited for nobody.
                    Err(error) => return self.on_failed(error.to_string()),
                };
                let ids = body.sync_state_set.iter();
                word.in_sync = ids.filter_map(|id| u64::try_from(*id).ok()).collect();
                if word.master == Some(self.id()) && word.elected_doubt >= self.control.doubt() {
                    self.control.forget_doubts();
                }
                let epoch = answer.int("syncStateSetEpoch").ok().flatten();
                word.in_sync_epoch = epoch.unwrap_or(0).clamp(0, u32::MAX.into()) as u32;
                self.heard.hear(word);
                self.has_asked = true;
                self.rest();
            }
            _ => unreachable!("an answer to nothing that was asked"),
        }
        Ok(())
    }

    fn rest(&mut self) {
        self.pause(Duration::from_millis(self.options.heartbeat_ms), false);
    }

    fn on_lease(&mut self, answer: &Command) -> Result<(), Trouble> {
        self.is_set_stale = false;
        let lease_ms = answer.int("leaseMillis").ok().flatten().unwrap_or(0).max(0) as u64;
        if lease_ms > 0 {
            self.control.renew(self.told_epoch, self.sent_ns, lease_ms);
        }
        let word = Word::read(answer);
        let is_ours = word.master == Some(self.id());
        let (log_epoch, _) = self.control.log_state();
        // Batches with a greater epoch than the election's: a store from before the controller. It needs a later one.
        if is_ours && self.told_epoch == word.epoch && log_epoch > self.told_epoch {
            self.has_asked = false;
        }
        if word.master.is_none() {
            self.has_asked = false;
        }
        let is_first = word.master.is_none() && word.epoch == 0;
        let knew_master = {
            let known = self.heard.word();
            known.master.is_some() || known.epoch > 0
        };
        // What it was made in an earlier life it is not any more, if others may have more by now.
        // The election may have been decided before this process said what it lacks.
        let is_of_this_life = self.first_epoch.is_some_and(|first| word.epoch > first)
            && word.elected_doubt >= self.told_doubt;
        let may_lack = self.told_doubt > Doubt::None && word.in_sync.len() > 1;
        if is_ours && is_of_this_life {
            // It was chosen without having asked, and has what counts.
            self.has_asked = true;
            self.control.forget_doubts();
        }
        if is_ours && may_lack && !is_of_this_life {
            self.control.hear_epoch(word.epoch);
        } else {
            self.heard.hear(word.clone());
        }
        if self.told_over {
            self.is_registered = false;
            self.stage = Stage::Begin;
        } else if self.has_asked || self.is_over {
            self.rest();
        } else {
            return self.stand(&word, is_first && !knew_master);
        }
        Ok(())
    }

    fn on_refused(&mut self, answer: &Command) -> Result<(), Trouble> {
        let trouble = Trouble {
            text: format!(
                "code {}: {}",
                answer.code,
                answer.remark.as_deref().unwrap_or_default()
            ),
            is_answer: answer.code != response::CONTROLLER_NOT_LEADER,
        };
        match (self.current, answer.code) {
            (Stage::ApplyId, code) if code != response::CONTROLLER_NOT_LEADER => {
                self.after_drop = Some(trouble);
                self.stage = Stage::DropWish;
                Ok(())
            }
            // The controller lost everything, or was made anew: we keep the id that we have.
            (Stage::Register, code) if is_forgotten(code) => {
                self.stage = Stage::ReturnId;
                Ok(())
            }
            (Stage::Heartbeat, code) if is_forgotten(code) => {
                self.is_registered = false;
                self.has_asked = false;
                self.fail(trouble)
            }
            (
                Stage::Elect,
                response::CONTROLLER_MASTER_STILL_EXIST | response::CONTROLLER_MASTER_NOT_AVAILABLE,
            ) => {
                self.has_asked = true;
                self.rest();
                Ok(())
            }
            _ => self.fail(trouble),
        }
    }
}

/// While this broker is the master: has the controller agree on who is in sync.
pub struct SetKeeper {
    control: Arc<Control>,
    broker_name: String,
    /// Epoch that the proposal under way was made in.
    epoch: u32,
}

impl SetKeeper {
    pub fn new(control: Arc<Control>, broker_name: String) -> Self {
        Self {
            control,
            broker_name,
            epoch: 0,
        }
    }

    /// What to ask for now, if anything. One at a time; an answer may take [`CHANGE_TIMEOUT`].
    pub fn next_proposal(&mut self) -> Option<(Outgoing, Vec<u8>, Proposal)> {
        let epoch = self.control.master_epoch();
        let (log_epoch, _) = self.control.log_state();
        if epoch == 0 || log_epoch > epoch {
            return None;
        }
        let proposal = self.control.propose()?;
        self.epoch = epoch;
        let body = json::to_vec(&SyncStateSet {
            sync_state_set: proposal.set.iter().map(|id| *id as i64).collect(),
            sync_state_set_epoch: proposal.set_epoch as i32,
        });
        let alter = Outgoing::request(request::CONTROLLER_ALTER_SYNC_STATE_SET)
            .field("brokerName", self.broker_name.clone())
            .field("masterBrokerId", self.control.id() as i64)
            .field("masterEpoch", i64::from(epoch));
        Some((alter, body, proposal))
    }

    /// Whether the controller agrees. If it does not, or does not answer, another try waits for [`PAUSE`].
    pub fn on_answer(&mut self, answer: &Command) -> bool {
        if answer.code != response::SUCCESS {
            return false;
        }
        let word = Word::read(answer);
        tracing::info!(in_sync = ?word.in_sync, "the controller agrees on the in-sync set");
        if self.control.master_epoch() == self.epoch {
            self.control.on_committed(word.in_sync, word.in_sync_epoch);
        }
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;
    use crate::wire::remoting::command::Encoding;
    use crate::wire::remoting::frame::next_frame;
    use bytes::BytesMut;
    use std::sync::atomic::{AtomicU64, Ordering};

    const MS: u64 = 1_000_000;

    struct Bench {
        now_ns: Arc<AtomicU64>,
        control: Arc<Control>,
        heard: Arc<Heard>,
        agent: Agent,
    }

    fn bench() -> Bench {
        let now_ns = Arc::new(AtomicU64::new(0));
        let clock = now_ns.clone();
        let control = Control::new(Box::new(move || clock.load(Ordering::Relaxed)));
        let heard = Heard::new(control.clone(), Box::new(|_| {}));
        let options = AgentOptions {
            cluster: "c".into(),
            broker_name: "b".into(),
            address: "a:1".into(),
            ha_address: "a:2".into(),
            timeout_ms: 1_000,
            heartbeat_ms: 200,
            priority: 7,
            check_code: "code".into(),
        };
        let agent = Agent::new(options, heard.clone());
        Bench {
            now_ns,
            control,
            heard,
            agent,
        }
    }

    fn command(outgoing: Outgoing, body: &[u8]) -> Command {
        let mut bytes = BytesMut::from(&outgoing.frame(Encoding::Json, body)[..]);
        next_frame(&mut bytes).unwrap().unwrap()
    }

    fn word(epoch: u32, master: u64, in_sync: &[i64], in_sync_epoch: i32) -> Command {
        let header = Outgoing::success()
            .field("masterBrokerId", master as i64)
            .field("masterHaAddress", format!("{master}:2"))
            .field("masterEpoch", i64::from(epoch))
            .field("syncStateSetEpoch", i64::from(in_sync_epoch))
            .field("leaseMillis", 750_i64);
        let body = json::to_vec(&SyncStateSet {
            sync_state_set: in_sync.iter().copied().collect(),
            sync_state_set_epoch: in_sync_epoch,
        });
        command(header, &body)
    }

    fn identity(broker_id: u64, seen_epoch: u32) -> Identity {
        Identity {
            cluster: "c".into(),
            broker_name: "b".into(),
            broker_id,
            check_code: "code".into(),
            seen_epoch,
        }
    }

    impl Bench {
        fn look(&mut self, looked: Looked) {
            assert_eq!(self.agent.next_step(), Step::Look);
            self.agent.on_looked(looked).unwrap();
        }

        /// The epoch that was heard of is stored.
        fn save_seen(&mut self, epoch: u32) {
            let Step::SaveOwn(own) = self.agent.next_step() else {
                panic!("an epoch that was heard of is stored first")
            };
            assert_eq!(own.seen_epoch, epoch);
            self.agent.on_saved().unwrap();
        }

        fn pass(&self, ms: u64) {
            self.now_ns.fetch_add(ms * MS, Ordering::Relaxed);
        }

        fn answer(&mut self, ask: Ask, answer: &Command) -> Result<(), Trouble> {
            assert_eq!(self.agent.next_step(), Step::Ask(ask));
            let _ = self.agent.request(ask);
            self.agent.on_answer(answer)
        }

        /// A process of a broker that has had its id for long, and what its logs hold.
        fn restarted(own: u64, seen_epoch: u32, looked: Looked) -> Self {
            let mut bench = bench();
            assert_eq!(bench.agent.next_step(), Step::Load);
            let identity = identity(own, seen_epoch);
            bench.agent.on_loaded(Some(identity), None).unwrap();
            bench.look(looked);
            bench
        }

        /// A broker that knows its id and has registered.
        fn registered(own: u64) -> Self {
            let mut bench = Self::restarted(own, 0, Looked::default());
            let nobody = command(Outgoing::success(), &[]);
            bench.answer(Ask::Register, &nobody).unwrap();
            bench
        }
    }

    #[test]
    fn what_a_broker_applies_for_is_stored_before_and_who_it_is_after_the_answer() {
        let mut bench = bench();
        let ok = command(Outgoing::success(), &[]);
        assert_eq!(bench.agent.next_step(), Step::Load);
        bench.agent.on_loaded(None, None).unwrap();
        let next = command(Outgoing::success().field("nextBrokerId", 3_i64), &[]);
        bench.answer(Ask::NextId, &next).unwrap();
        let Step::SaveWish(wish) = bench.agent.next_step() else {
            panic!("a wish is stored first")
        };
        assert_eq!((wish.broker_id, &*wish.check_code), (3, "code"));
        bench.agent.on_saved().unwrap();
        // Another broker was faster.
        let taken = Outgoing::error(response::CONTROLLER_BROKER_ID_INVALID, "taken");
        bench.answer(Ask::ApplyId, &command(taken, &[])).unwrap();
        assert_eq!(bench.agent.next_step(), Step::DropWish);
        assert!(bench.agent.on_saved().is_err());
        bench.pass(100);
        let next = command(Outgoing::success().field("nextBrokerId", 4_i64), &[]);
        bench.answer(Ask::NextId, &next).unwrap();
        assert!(matches!(bench.agent.next_step(), Step::SaveWish(_)));
        bench.agent.on_saved().unwrap();
        bench.answer(Ask::ApplyId, &ok).unwrap();
        assert_eq!(bench.control.id(), 0, "not before it is durable");
        assert!(matches!(bench.agent.next_step(), Step::SaveOwn(_)));
        bench.agent.on_saved().unwrap();
        assert_eq!(bench.control.id(), 4);
        bench.look(Looked::default());
        assert_eq!(bench.agent.next_step(), Step::Ask(Ask::Register));
    }

    #[test]
    fn a_lease_counts_from_when_the_heartbeat_left_and_the_first_one_is_asked_for_at_once() {
        let mut bench = Bench::registered(1);
        bench.answer(Ask::Heartbeat, &word(0, 0, &[], 0)).unwrap();
        bench.answer(Ask::Elect, &word(1, 1, &[1], 1)).unwrap();
        bench.save_seen(1);
        let nobody = word(1, 1, &[1], 1);
        bench.answer(Ask::Heartbeat, &nobody).unwrap();
        let opening = bench.heard.opening().unwrap();
        assert_eq!(opening.role, Wanted::Master(1));
        assert!(matches!(bench.agent.next_step(), Step::Wait { .. }));
        bench.control.begin_life(1, 1, [1].into(), 1);
        assert_eq!(bench.agent.next_step(), Step::Ask(Ask::Heartbeat));
        let _ = bench.agent.request(Ask::Heartbeat);
        bench.pass(700);
        bench.agent.on_answer(&word(1, 1, &[1], 1)).unwrap();
        assert!(bench.control.may_acknowledge());
        bench.pass(50);
        assert!(!bench.control.may_acknowledge(), "750 ms from the request");
    }

    #[test]
    fn a_master_of_an_earlier_life_has_to_be_elected_again() {
        let mut bench = bench();
        assert_eq!(bench.agent.next_step(), Step::Load);
        let identity = identity(1, 0);
        bench.agent.on_loaded(Some(identity), None).unwrap();
        bench.look(Looked::default());
        bench
            .answer(Ask::Register, &word(4, 1, &[1, 2], 9))
            .unwrap();
        assert_eq!(bench.heard.opening(), None);
    }

    #[test]
    fn what_failed_is_tried_again_after_a_pause_even_if_the_epoch_has_changed() {
        let mut bench = Bench::registered(1);
        bench.pass(1);
        assert_eq!(bench.agent.next_step(), Step::Ask(Ask::Heartbeat));
        bench.control.begin_life(2, 1, [1].into(), 1);
        assert!(bench.agent.on_failed("no controller").is_err());
        assert!(matches!(bench.agent.next_step(), Step::Wait { .. }));
        bench.pass(100);
        bench.save_seen(2);
        assert_eq!(bench.agent.next_step(), Step::Ask(Ask::Heartbeat));
    }

    #[test]
    fn a_store_that_was_a_slaves_does_not_stand_for_the_first_election() {
        let looked = Looked {
            was_replica: true,
            logs: Vec::new(),
        };
        let mut bench = Bench::restarted(1, 0, looked);
        let nobody = command(Outgoing::success(), &[]);
        bench.answer(Ask::Register, &nobody).unwrap();
        let refused = bench.answer(Ask::Heartbeat, &nobody).unwrap_err();
        assert!(refused.is_answer && refused.text == WAS_SLAVE);
    }

    #[test]
    fn who_may_lack_something_does_not_stand_before_others_who_have_it() {
        let looked = Looked {
            was_replica: false,
            logs: vec![(0, 4, 100, Doubt::None), (1, 3, 50, Doubt::Damaged)],
        };
        let mut bench = Bench::restarted(1, 4, looked);
        assert_eq!(bench.control.log_state(), (4, 150));
        // It was the master, and may be it still as far as the controller knows.
        let before = word(4, 1, &[1, 2], 9);
        bench.answer(Ask::Register, &before).unwrap();
        assert_eq!(bench.agent.next_step(), Step::Ask(Ask::Heartbeat));
        let beat = command(bench.agent.request(Ask::Heartbeat), &[]);
        assert_eq!(beat.int("logDoubt").unwrap(), Some(2));
        assert!(bench.agent.on_answer(&before).unwrap_err().is_answer);
        assert_eq!(bench.heard.opening(), None);
        assert!(matches!(bench.agent.next_step(), Step::Wait { .. }));
        // The controller has looked at all of them and takes it all the same.
        bench.pass(200);
        bench.answer(Ask::Heartbeat, &word(5, 1, &[1], 10)).unwrap();
        bench.save_seen(5);
        assert_eq!(bench.heard.opening().unwrap().role, Wanted::Master(5));
        // Alone in the set nobody else has more.
        let mut bench = Bench::registered(1);
        bench.control.note_doubt(0, Doubt::Torn);
        bench.answer(Ask::Heartbeat, &word(4, 1, &[1], 9)).unwrap();
        bench.save_seen(4);
        assert_eq!(bench.agent.next_step(), Step::Ask(Ask::Heartbeat));
    }

    #[test]
    fn who_was_elected_by_somebody_who_did_not_know_what_it_lacks_does_not_begin() {
        for (known, next) in [(Doubt::Torn, Ask::Heartbeat), (Doubt::Damaged, Ask::Narrow)] {
            let looked = Looked {
                was_replica: true,
                logs: vec![(0, 3, 50, Doubt::Damaged)],
            };
            let mut bench = Bench::restarted(1, 4, looked);
            let other = word(4, 2, &[1, 2], 9);
            bench.answer(Ask::Register, &other).unwrap();
            bench.answer(Ask::Heartbeat, &other).unwrap();
            bench.answer(Ask::Elect, &other).unwrap();
            // The controllers tell everybody whom they have elected.
            bench.heard.hear(Word {
                elected_doubt: known,
                ..Word::read(&word(5, 1, &[1, 2], 10))
            });
            bench.pass(10_000);
            bench.save_seen(5);
            let role = bench.heard.opening().map(|opening| opening.role);
            assert!(!matches!(role, Some(Wanted::Master(_))), "{role:?}");
            assert_eq!(bench.agent.next_step(), Step::Ask(next), "{known:?}");
        }
    }

    #[test]
    fn a_new_master_begins_when_the_set_is_agreed_to_be_itself() {
        let mut bench = Bench::registered(1);
        bench.answer(Ask::Heartbeat, &word(0, 0, &[], 0)).unwrap();
        let elected = Outgoing::success()
            .field("masterBrokerId", 1_i64)
            .field("masterEpoch", 3_i64)
            .field("syncStateSetEpoch", 7_i64);
        let body = json::to_vec(&ElectMasterResponseBody {
            sync_state_set: [1, 2].into(),
            ..ElectMasterResponseBody::default()
        });
        bench.answer(Ask::Elect, &command(elected, &body)).unwrap();
        bench.save_seen(3);
        assert_eq!(bench.heard.opening(), None, "the other one may be elected");
        assert_eq!(bench.agent.next_step(), Step::Ask(Ask::Narrow));
        let alter = bench.agent.request(Ask::Narrow);
        let alter = command(alter, &bench.agent.body(Ask::Narrow));
        assert_eq!(alter.int("masterEpoch").unwrap(), Some(3));
        let asked: SyncStateSet = json::from_slice(&alter.body).unwrap();
        assert_eq!(
            (asked.sync_state_set, asked.sync_state_set_epoch),
            ([1].into(), 7)
        );
        // The set has changed since: a heartbeat says how.
        let fenced = Outgoing::error(response::CONTROLLER_FENCED_SYNC_STATE_SET_EPOCH, "");
        assert!(bench.agent.on_answer(&command(fenced, &[])).is_err());
        bench.pass(100);
        bench
            .answer(Ask::Heartbeat, &word(3, 1, &[1, 2], 8))
            .unwrap();
        bench.answer(Ask::Narrow, &word(3, 1, &[1], 9)).unwrap();
        let opening = bench.heard.opening().unwrap();
        assert_eq!(opening.role, Wanted::Master(3));
        assert_eq!(opening.in_sync, ([1].into(), 9));
        // While it is at work the set grows again, and that is nothing to narrow; nor is it when it has resigned.
        bench.control.begin_life(3, 1, [1].into(), 9);
        bench
            .answer(Ask::Heartbeat, &word(3, 1, &[1, 2], 10))
            .unwrap();
        assert!(bench.heard.opening().is_some());
        bench.control.resign();
        assert_eq!(bench.agent.next_step(), Step::Ask(Ask::Heartbeat));
    }

    #[test]
    fn an_epoch_is_stored_before_its_role_begins_and_is_said_ever_after() {
        let mut bench = Bench::registered(1);
        bench.answer(Ask::Heartbeat, &word(6, 2, &[2], 1)).unwrap();
        assert_eq!(bench.heard.opening(), None, "not before it is stored");
        bench.save_seen(6);
        assert_eq!(bench.heard.opening().unwrap().role, Wanted::Slave);
        // Another life, whose controllers know nothing any more.
        let looked = Looked {
            was_replica: true,
            logs: vec![(0, 5, 100, Doubt::None)],
        };
        let mut bench = Bench::restarted(1, 6, looked);
        let nobody = command(Outgoing::success(), &[]);
        bench.answer(Ask::Register, &nobody).unwrap();
        assert_eq!(bench.agent.next_step(), Step::Ask(Ask::Heartbeat));
        let beat = command(bench.agent.request(Ask::Heartbeat), &[]);
        assert_eq!(beat.int("seenEpoch").unwrap(), Some(6));
        assert_eq!(beat.int("logEpoch").unwrap(), Some(5));
    }

    #[test]
    fn who_ends_says_good_bye_once_and_does_not_wait_for_a_dead_controller() {
        let mut bench = Bench::registered(1);
        bench.agent.end();
        bench.answer(Ask::Heartbeat, &word(1, 2, &[2], 1)).unwrap();
        assert_eq!(bench.agent.next_step(), Step::Over);
        let mut bench = Bench::registered(1);
        bench.agent.end();
        assert_eq!(bench.agent.next_step(), Step::Ask(Ask::Heartbeat));
        assert!(bench.agent.on_failed("it is dead").is_err());
        assert_eq!(bench.agent.next_step(), Step::Over);
    }

    #[test]
    fn the_same_epoch_opened_again_still_waits_for_whom_it_proposed() {
        let bench = Bench::registered(1);
        let control = &bench.control;
        control.begin_life(3, 1, [1].into(), 5);
        control.on_committed([1, 2].into(), 6);
        // The word that this opening was made of is older.
        control.begin_life(3, 1, [1].into(), 5);
        assert_eq!(control.waits().ids, [2].into());
        control.begin_life(4, 1, [1].into(), 7);
        assert!(control.waits().ids.is_empty());
    }
}
