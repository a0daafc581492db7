package chaos

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"
)

// The kinds of faults, as the report names them.
const (
	agentKilled   = "agent killed (kill -9)"
	agentEnded    = "agent restarted in order"
	powerCut      = "power cut: agent and TPM"
	serviceKilled = "service killed (kill -9)"
	serviceEnded  = "service restarted in order"
	storeKilled   = "database killed"
	networkCut    = "network cut"
	publishCut    = "connection cut in the middle of a PUBLISH"
	halfService   = "half-open: the service's end lost"
	halfTill      = "half-open: the till's end lost"
	blackHole     = "black hole"
	latency       = "latency"
	bandwidth     = "little bandwidth"
	duplicates    = "duplicated packets"
	diskFull      = "disk full"
	diskFullMid   = "disk full in the middle of a write"
	diskRefuses   = "disk refuses every write"
	clockDead     = "clock jumps 10 years back"
	clockFar      = "clock jumps 5 years ahead"
	clockBack     = "clock jumps an hour back"
	clockAhead    = "clock jumps 26 hours ahead"
	clockFast     = "clock runs fast"
	clockSlow     = "clock runs slow"
	tpmBusy       = "TPM busy"
	tpmFailing    = "TPM failing"
	tpmGone       = "TPM gone"
)

// kind is a kind of fault. Faults of one lane of one till never overlap; those
// of different lanes do.
type kind struct {
	name        string
	lane        string
	weight      int
	least, most time.Duration // that it lasts
}

const second = time.Second

var kinds = []kind{
	{agentKilled, "agent", 8, 0, 0},
	{agentEnded, "agent", 2, 0, 0},
	{powerCut, "agent", 2, 0, 0},
	{networkCut, "network", 5, second / 2, 6 * second},
	{publishCut, "network", 4, 4 * second, 4 * second}, // at most: it waits for one
	{halfService, "network", 2, second, 5 * second},
	{halfTill, "network", 2, second, 5 * second},
	{blackHole, "network", 2, 2 * second, 8 * second},
	{latency, "network", 2, 3 * second, 8 * second},
	{bandwidth, "network", 2, 3 * second, 8 * second},
	{duplicates, "packets", 4, 4 * second, 10 * second},
	{diskFull, "disk", 3, second, 15 * second},
	{diskFullMid, "disk", 3, second, 8 * second},
	{diskRefuses, "disk", 2, second, 6 * second},
	{clockDead, "clock", 1, 2 * second, 8 * second},
	{clockFar, "clock", 1, 2 * second, 8 * second},
	{clockBack, "clock", 1, 4 * second, 15 * second},
	{clockAhead, "clock", 1, 4 * second, 15 * second},
	{clockFast, "clock", 1, 4 * second, 15 * second},
	{clockSlow, "clock", 1, 4 * second, 15 * second},
	{tpmBusy, "TPM", 2, second, 4 * second},
	{tpmFailing, "TPM", 2, second, 8 * second},
	{tpmGone, "TPM", 1, second, 4 * second},
}

// ofService are rarer: each hits every till.
var ofService = []kind{
	{serviceKilled, "service", 4, second / 5, 3 * second},
	{serviceEnded, "service", 1, second / 5, 2 * second},
}

// ofStore is for a service with a database of its own.
var ofStore = kind{storeKilled, "service", 2, second / 5, 3 * second}

// fault is one of the plan.
type fault struct {
	kind
	till int // -1: none, it is the service's
	at   time.Duration
	long time.Duration
	draw uint64 // what else is up to chance
}

// plan draws n faults of tills, and the service's beside them, over a time. The
// same seed draws the same. Each kind comes, if n allows.
func plan(seed uint64, tills, n int, ofService []kind, whole time.Duration) []fault {
	rng := rand.New(rand.NewPCG(seed, 6)) // #nosec G404 -- to be drawn again
	var all []fault
	deal := func(of []kind, n, tills int) {
		total := 0
		for _, k := range of {
			total += k.weight
		}
		var deck []kind
		for _, k := range of {
			for range max(1, n*k.weight/total) {
				deck = append(deck, k)
			}
		}
		for len(deck) < n {
			deck = append(deck, of[rng.IntN(len(of))])
		}
		rng.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		for i, k := range deck {
			f := fault{kind: k, till: -1, long: k.least, draw: rng.Uint64()}
			if tills > 0 {
				f.till = i % tills
			}
			if k.most > k.least {
				f.long += time.Duration(rng.Int64N(int64(k.most - k.least)))
			}
			all = append(all, f)
		}
	}
	deal(kinds, n, tills)
	deal(ofService, max(2, int(whole/(30*second))), 0)
	spread(all, whole, rng)
	slices.SortStableFunc(all, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
	return all
}

// spread gives each fault a place in the time of its lane, and no more than that.
func spread(all []fault, whole time.Duration, rng *rand.Rand) {
	type lane struct {
		till int
		name string
	}
	n, nth := make(map[lane]int), make(map[lane]int)
	for _, f := range all {
		n[lane{f.till, f.lane}]++
	}
	for i := range all {
		f := &all[i]
		l := lane{f.till, f.lane}
		slot := whole / time.Duration(n[l])
		f.long = min(f.long, slot*8/10)
		f.at = slot*time.Duration(nth[l]) + time.Duration(rng.Int64N(int64(slot-f.long)))
		nth[l]++
	}
}
