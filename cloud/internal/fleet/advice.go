package fleet

import (
	"maps"
	"slices"
)

// advices say what a person does about a reason: one sentence for each.
var advices = map[string]string{
	"POWER_OFFLINE":     "Look at its panel: it is on, but not ready.",
	"POWER_OFF":         "Switch it on.",
	"POWER_OFF_OFFLINE": "Check its power and its cable.",

	"COVER_OPEN":            "Close the printer's cover.",
	"REC_EMPTY":             "Put in a new roll of paper.",
	"REC_NEAREMPTY":         "Have a new roll of paper ready.",
	"M_CUTTER_ERROR":        "Clear the paper at the cutter, then switch the printer off and on.",
	"M_HEAD_TOO_HOT":        "Let the print head cool; printing goes on by itself.",
	"M_MECHANICAL_ERROR":    "Look for jammed paper, then switch the printer off and on.",
	"M_UNRECOVERABLE_ERROR": "Switch the printer off and on; if it stays so, replace it.",

	"DRAWEROPEN":               "Close the cash drawer.",
	"M_DRAWER_UNEXPECTED_OPEN": "Somebody opened the cash drawer without a sale: look who, then close it.",
	"M_DRAWER_LEFT_OPEN":       "Close the cash drawer; it has been open too long.",
	"M_DRAWER_STUCK":           "The cash drawer does not open when it is told to: check its lock and its cable.",

	"M_CARD_MUTE":  "Take the card out and put it in again; clean the reader if it happens often.",
	"M_CARD_TORN":  "Put the card in again and leave it there until the till is done.",
	"E_NOSERVICE":  "The reader's service on the till does not let the agent use it: allow the agent's user there, by a polkit rule or by the rights of the socket.",
	"M_PCSCD_GONE": "The reader's service on the till has stopped; it is tried again by itself, restart the till if it stays so.",

	"M_TAMPERED":   "Somebody opened the box: take the till out of use and look at it.",
	"M_EDGES_LOST": "A switch moved faster than could be followed: look at the box.",
	"M_DOOR_OPEN":  "Close the door.",

	"M_TEMP_HIGH":      "It is too hot inside the box: check fan and air slots.",
	"M_SUPPLY_LOW":     "The supply voltage is too low: check the power adapter.",
	"M_DISK_LOW":       "The disk is nearly full: free some space.",
	"M_MEMORY_LOW":     "Memory is short: look which program takes it, or restart the till.",
	"M_HOST_HOT":       "The till is too hot: check fan and air slots.",
	"M_DISK_FAILING":   "The disk says that it will fail: replace it soon.",
	"M_CLOCK_UNSYNCED": "The clock of the till is not kept by the network: check its time server.",

	"M_NO_SENSOR":    "It cannot tell all that matters; look at it now and then.",
	reasonNotAsked:   "Nothing is known of it yet; it is asked soon, unless the configuration forbids it.",
	"M_IN_USE":       "The till uses it at present, so it cannot be asked; nothing is wrong.",
	"M_NO_ACCESS":    "The agent on the till has no right to open it: put the agent's user into the group that owns the device.",
	"M_NO_DRIVER":    "It is plugged in and nothing is configured for it: add it to the till's configuration, or ignore it there.",
	"M_TIMEOUT":      "It does not answer: check its cable, then switch it off and on.",
	"M_DRIVER_PANIC": "The agent could not cope with what it said; collect the logs of the till and report them.",

	// Errors of UnifiedPOS, of what could not be opened.
	"E_ILLEGAL":    "Its configuration on the till cannot be carried out: the audit trail of the till says why.",
	"E_NOEXIST":    "Nothing is where the configuration says: check the address, and whether it is plugged in.",
	"E_NOHARDWARE": "It is not plugged in, or has no power: check its cables.",
	"E_BUSY":       "Another program holds it: have only one use it, or configure it as observe.",
	"E_OFFLINE":    "It is not ready: look at its panel, its power and its cable.",
	"E_TIMEOUT":    "It did not answer in time: switch it off and on, then check its cable.",
	"E_FAILURE":    "Its driver failed: the audit trail of the till says why; check its cable and its configuration.",

	ReasonGone:        "Its till does not have it any more: plug it in again if it should be there.",
	ReasonTillOffline: "The till is not connected: check its power and its network.",
	ReasonReadErrors:  "It reads worse than others of its model: clean it, and replace it if that does not help.",
	ReasonPaperSoon:   "The roll of paper will soon be at its end: have a new one ready.",
}

// Advice says what a person does about a peripheral that is not OK; empty for
// one that is. What an agent names and this service does not know is to be
// looked at.
func Advice(l Light) string {
	switch a := advices[l.Reason]; {
	case a != "":
		return a
	case l.Health == HealthOK:
		return ""
	}
	return "Look at it; this service does not know what it says."
}

// Reasons lists the reasons that there is an advice for, sorted.
func Reasons() []string { return slices.Sorted(maps.Keys(advices)) }
