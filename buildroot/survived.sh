#!/bin/sh
# Says which lines of configuration fragments a build has lost: Kconfig drops in
# silence what is misspelt, wants another option, or is not in this version.
#
#   survived.sh CONFIG FRAGMENT...
#
# CONFIG is what was built by. Of two lines about one option the last one counts.
set -eu

awk '
	/^CONFIG_[A-Za-z0-9_]+=/ || /^# CONFIG_[A-Za-z0-9_]+ is not set$/ {
		match($0, /CONFIG_[A-Za-z0-9_]+/)
		option = substr($0, RSTART, RLENGTH)
		line = /=n$/ ? "# " option " is not set" : $0
		if (NR == FNR) is[option] = line
		else want[option] = line
	}
	END {
		for (option in want) {
			off = "# " option " is not set"
			if (option in is ? is[option] != want[option] : want[option] != off) {
				print want[option] ": the build has " (option in is ? is[option] : "no such option")
				lost = 1
			}
		}
		exit lost
	}' "$@"
