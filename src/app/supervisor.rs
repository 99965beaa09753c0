//! What the service manager that started this process is told, if there is one (NOTIFY_SOCKET): that everything answers, and
//! that it stops. See sd_notify(3); `tuning/ringmq.service` has `Type=notify`.

use sd_notify::NotifyState;

/// Ports are open and the stores recovered.
pub fn serving() {
    tell(NotifyState::Ready);
}

/// What is under way is ended.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState) {
    // Without a socket this is nothing. A manager that cannot be reached will say so itself.
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("the service manager could not be told: {error}");
    }
}
