"""From committed records to an honest leaderboard; never torch. `model` is the board as data, `entries` what lies below
`leaderboard/`, `build` the pure function from one to the other, `site` its pages. `tree`, `entry_checks` and `derived`
refuse entries, `submit` adds them, and `verify` compares them with a second look (`agreement`)."""
