package tamper

// plan is who plays what.
type plan struct {
	lanes [][]attack // side by side, each list on a till of its own; the last till has boot slots
	last  []attack   // on the first till when the others are done
}

// everything is what Run plays, in lists that take about the same time.
var everything = plan{
	lanes: [][]attack{
		{
			{"arbitrary-install", "software that nobody signed", arbitraryInstall},
			{"endless-data", "files that do not end", endlessData},
			{"mix-and-match", "parts of the metadata from different times", mixAndMatch},
			{"key-compromise-below-threshold", "metadata signed by fewer than must sign", belowThreshold},
			{"malicious-mirror", "a mirror that gives nothing, or nonsense", maliciousMirror},
		},
		{
			{"fleet-service-compromised", "a service whose keys and database somebody has offers what he likes", compromised},
			{"extraneous-dependencies", "signers name what is not theirs", extraneous},
			{"rollback", "what is older than what the till has seen", rollback},
			{"wrong-software", "a genuine release in the place of another", wrongSoftware},
			{"freeze", "the same state, good once, for ever", freeze},
		},
		{
			{"update-medium", "sticks that were tampered with, are too old, or are for others", sticks},
			{"slow-retrieval", "bytes that come one at a time", slowRetrieval},
		},
		{
			{"image-breaks-printer", "a system image that boots and connects, and after which the printer is dead", breaksPrinter},
			{"flipped-byte-in-resumed-range", "a cut, then a flipped byte in what comes after it", flippedByte},
			{"agent-never-connects", "a genuine agent that checks itself well and does not find its service", neverConnects},
		},
	},
	// Keys are exchanged in these.
	last: []attack{
		{"fast-forward", "versions counted far ahead", fastForward},
		{"withheld-root-after-revocation", "keys that were revoked, by a root that a mirror keeps back", withheldRoot},
	},
}

// Names lists the attacks.
func Names() []string { return everything.names() }

func (p plan) names() (names []string) {
	for _, list := range append(p.lanes, p.last) {
		for _, a := range list {
			names = append(names, a.name)
		}
	}
	return names
}
