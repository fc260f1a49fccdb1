//! Damage is reported once, with the ids that it cost, and costs nothing beside.
