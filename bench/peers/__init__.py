"""Other tools, measured beside Headwater. `make bench-peers` installs them apart; nothing else needs them."""
