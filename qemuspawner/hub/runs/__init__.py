"""Which desktops ran and how they ended: records, advice, statistics, and what is done once a minute."""
