package api

import (
	"encoding/xml"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// uposVersion is the version of UnifiedPOS whose statistics these are.
const uposVersion = "1.14.1"

// commonStatistics are those of every category [UnifiedPOS 1.14.1, statistics].
var commonStatistics = []string{"HoursPoweredCount", "CommunicationErrorCount"}

// categoryStatistics are those of one category; SmartCardRW has none of its own.
var categoryStatistics = map[string][]string{
	"POSPrinter": {
		"BarcodePrintedCount", "FormInsertionCount", "HomeErrorCount", "JournalCharacterPrintedCount", "JournalLinePrintedCount", "MaximumTempReachedCount",
		"NVRAMWriteCount", "PaperCutCount", "FailedPaperCutCount", "PrinterFaultCount", "PrintSideChangeCount", "FailedPrintSideChangeCount",
		"ReceiptCharacterPrintedCount", "ReceiptCoverOpenCount", "ReceiptLineFeedCount", "ReceiptLinePrintedCount", "SlipCharacterPrintedCount",
		"SlipCoverOpenCount", "SlipLineFeedCount", "SlipLinePrintedCount", "StampFiredCount",
	},
	"CashDrawer":   {"DrawerGoodOpenCount", "DrawerFailedOpenCount"},
	"Scanner":      {"GoodScanCount"},
	"ImageScanner": {"GoodReadCount", "NoReadCount", "SessionCount"},
	"LineDisplay":  {"OnlineTransitionCount"},
	"Keylock":      {"LockPositionChangeCount"},
	"MotionSensor": {"MotionEventCount"},
	"PINPad":       {"ValidPINEntryCount", "InvalidPINEntryCount"},
	"Scale":        {"GoodWeightReadCount"},
}

type uposStat struct {
	XMLName   xml.Name      `xml:"UPOSStat"`
	Version   string        `xml:"version,attr"`
	Namespace string        `xml:"xmlns,attr"`
	Event     uposEvent     `xml:"Event"`
	Equipment uposEquipment `xml:"Equipment"`
}

type uposEvent struct {
	Parameters   []uposValue `xml:"Parameter"`
	Manufacturer []uposValue `xml:"ManufacturerSpecific"`
}

type uposValue struct {
	Name  string `xml:"Name"`
	Value string `xml:"Value"`
}

type uposEquipment struct {
	Version      string       `xml:"UnifiedPOSVersion"`
	Category     uposCategory `xml:"DeviceCategory"`
	Maker        string       `xml:"ManufacturerName"`
	Model        string       `xml:"ModelName"`
	Serial       string       `xml:"SerialNumber"`
	Made         string       `xml:"ManufactureDate"`
	Mechanical   string       `xml:"MechanicalRevision"`
	Firmware     string       `xml:"FirmwareRevision"`
	Interface    string       `xml:"Interface"`
	Installation string       `xml:"InstallationDate"`
}

type uposCategory struct {
	UPOS string `xml:"UPOS,attr"`
}

// statisticsXML is what a peripheral counts in the form of retrieveStatistics:
// first what UnifiedPOS defines for its category, whether it has it or not, then
// what the maker's side has beside that.
func statisticsXML(p fleet.Peripheral, series []fleet.SeriesInfo) ([]byte, error) {
	doc := uposStat{
		Version: uposVersion, Namespace: "http://www.nrf-arts.org/UnifiedPOS/namespace/",
		Equipment: uposEquipment{
			Version: uposVersion, Category: uposCategory{p.Category}, Maker: p.Maker, Model: p.Model, Serial: p.Serial, Firmware: p.Firmware, Interface: p.Interface,
		},
	}
	if !p.FirstAt.IsZero() { // as far as we know
		doc.Equipment.Installation = p.FirstAt.UTC().Format(time.DateOnly)
	}
	have := map[string]string{}
	for _, s := range series {
		have[s.Name] = strconv.FormatFloat(s.Last, 'f', -1, 64)
	}
	for _, name := range slices.Concat(commonStatistics, categoryStatistics[p.Category]) {
		doc.Event.Parameters = append(doc.Event.Parameters, uposValue{name, have[name]})
		delete(have, name)
	}
	for _, s := range series {
		if value, ok := have[s.Name]; ok {
			name := s.Name
			if !strings.HasPrefix(name, "M_") { // a measurement of ours, or another category's
				name = "M_" + name
			}
			doc.Event.Manufacturer = append(doc.Event.Manufacturer, uposValue{name, value})
		}
	}
	text, err := xml.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, err
	}
	return append([]byte(xml.Header), append(text, '\n')...), nil
}
