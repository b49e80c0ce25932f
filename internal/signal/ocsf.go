// SPDX-License-Identifier: Apache-2.0

package signal

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"remit"
)

// Source is who tells, in the metadata of each event in the form of OCSF.
type Source struct {
	Version     string // of Remit
	TrustDomain string
}

// ocsfVersion is the version of the schema (schema.ocsf.io) that the events below follow.
const ocsfVersion = "1.9.0"

// The classes: where an entry of the ledger stands in the schema.
const (
	classFinding = 2004 // Detection Finding
	classSession = 3003 // Authorize Session: a grant, which assigns privileges
	classUser    = 3007 // User Management: an agent is disabled and enabled; its credentials come and go
	classAPI     = 6003 // API Activity, with the profile Security Control: a decision
)

var classNames = map[int]string{classFinding: "Detection Finding", classSession: "Authorize Session", classUser: "User Management", classAPI: "API Activity"}

var categoryNames = map[int]string{2: "Findings", 3: "Identity & Access Management", 6: "Application Activity"}

// ocsf is an event. Names and numbers are those of the schema; what the schema has no word for stands in unmapped.
type ocsf struct {
	CategoryUID  int           `json:"category_uid"`
	CategoryName string        `json:"category_name"`
	ClassUID     int           `json:"class_uid"`
	ClassName    string        `json:"class_name"`
	ActivityID   int           `json:"activity_id"`
	ActivityName string        `json:"activity_name"`
	TypeUID      int           `json:"type_uid"`
	Time         int64         `json:"time"` // milliseconds since 1970
	SeverityID   int           `json:"severity_id"`
	Severity     string        `json:"severity"`
	StatusID     int           `json:"status_id,omitempty"`
	Status       string        `json:"status,omitempty"`
	StatusCode   string        `json:"status_code,omitempty"`
	StatusDetail string        `json:"status_detail,omitempty"`
	Message      string        `json:"message"`
	Metadata     ocsfMetadata  `json:"metadata"`
	Actor        *ocsfActor    `json:"actor,omitempty"`
	User         *ocsfUser     `json:"user,omitempty"`
	Session      *ocsfSession  `json:"session,omitempty"`
	Privileges   []string      `json:"privileges,omitempty"`
	API          *ocsfAPI      `json:"api,omitempty"`
	Src          *ocsfEndpoint `json:"src_endpoint,omitempty"`
	Resources    []ocsfNamed   `json:"resources,omitempty"`
	ActionID     int           `json:"action_id,omitempty"`
	Action       string        `json:"action,omitempty"`
	Disposition  int           `json:"disposition_id,omitempty"`
	Policy       *ocsfNamed    `json:"policy,omitempty"`
	Count        uint64        `json:"count,omitempty"` // with the time from which and to which they were
	Start        int64         `json:"start_time,omitempty"`
	End          int64         `json:"end_time,omitempty"`
	Finding      *ocsfFinding  `json:"finding_info,omitempty"`
	Evidences    []ocsfActor   `json:"evidences,omitempty"`
	IsAlert      bool          `json:"is_alert,omitempty"`
	Unmapped     ocsfMore      `json:"unmapped"`
}

type ocsfMetadata struct {
	Version     string      `json:"version"`
	Product     ocsfProduct `json:"product"`
	UID         string      `json:"uid"`
	Sequence    uint64      `json:"sequence"` // of the entry
	EventCode   string      `json:"event_code"`
	LogName     string      `json:"log_name"`
	Original    string      `json:"original_time"`
	Tenant      string      `json:"tenant_uid"`
	Correlation string      `json:"correlation_uid,omitempty"` // the run
	Profiles    []string    `json:"profiles,omitempty"`
}

type ocsfProduct struct {
	Name    string `json:"name"`
	Vendor  string `json:"vendor_name"`
	Version string `json:"version"`
}

type ocsfActor struct {
	User ocsfUser `json:"user"`
}

type ocsfUser struct {
	Name        string           `json:"name"`
	UID         string           `json:"uid"`
	Domain      string           `json:"domain"`
	TypeID      int              `json:"type_id"`
	Type        string           `json:"type"`
	Credentials []ocsfCredential `json:"programmatic_credentials,omitempty"`
}

type ocsfCredential struct {
	UID  string `json:"uid"`
	Type string `json:"type"`
}

type ocsfSession struct {
	UID        string `json:"uid"`
	Credential string `json:"credential_uid,omitempty"`
	Created    int64  `json:"created_time"`
	Expires    int64  `json:"expiration_time"`
	Issuer     string `json:"issuer"`
}

type ocsfAPI struct {
	Operation string    `json:"operation"`
	Service   ocsfNamed `json:"service"`
	Request   struct {
		UID string `json:"uid"`
	} `json:"request"`
}

type ocsfEndpoint struct {
	UID     string `json:"uid"`
	Service string `json:"svc_name,omitempty"`
}

type ocsfNamed struct {
	Name string `json:"name"`
	UID  string `json:"uid,omitempty"`
}

type ocsfFinding struct {
	UID      string       `json:"uid"`
	Title    string       `json:"title"`
	Desc     string       `json:"desc,omitempty"`
	Types    []string     `json:"types"`
	Created  int64        `json:"created_time"`
	Analytic ocsfAnalytic `json:"analytic"`
	Related  []ocsfEvent  `json:"related_events,omitempty"`
}

type ocsfAnalytic struct {
	Name   string `json:"name"`
	TypeID int    `json:"type_id"`
	Type   string `json:"type"`
}

type ocsfEvent struct {
	UID string `json:"uid"`
}

type ocsfMore struct {
	Run      remit.RunID      `json:"run,omitempty"`
	Decision remit.DecisionID `json:"decision,omitempty"`
	Grant    remit.GrantID    `json:"grant,omitempty"`
	Lease    remit.LeaseID    `json:"lease,omitempty"`
	Hold     remit.HoldID     `json:"hold,omitempty"`
	Finding  remit.FindingID  `json:"finding,omitempty"`
	Via      string           `json:"via,omitempty"`
	Level    string           `json:"level,omitempty"`
	Response string           `json:"response,omitempty"`
	Held     string           `json:"held_back,omitempty"`
	Score    float64          `json:"score,omitempty"`
}

// OCSF is the event in the form of OCSF 1.9, of every kind that is told; the same entry makes the same bytes each time.
func (s *Signal) OCSF(src Source) []byte {
	e := ocsf{Time: s.At.UnixMilli(), Unmapped: ocsfMore{Run: s.Run, Decision: s.Decision, Grant: s.Grant, Lease: s.Lease}, Metadata: ocsfMetadata{
		Version: ocsfVersion, Product: ocsfProduct{"Remit", "Remit", src.Version}, UID: entryUID(src, s.Seq), Sequence: s.Seq, EventCode: string(s.Kind),
		LogName: "ledger", Original: s.At.UTC().Format(time.RFC3339Nano), Tenant: src.TrustDomain, Correlation: string(s.Run)}}
	switch s.Kind {
	case remit.EventRaised, remit.EventClosed:
		s.ocsfFinding(&e, src)
	case remit.EventDecision:
		s.ocsfDecision(&e, src)
	case remit.EventFolded:
		s.ocsfFolded(&e, src)
	case remit.EventGrant:
		s.ocsfGrant(&e, src)
	default:
		s.ocsfUser(&e, src)
	}
	e.Message = remit.Clip(e.Message, 1000)
	b, err := json.Marshal(&e)
	if err != nil {
		panic("signal: " + err.Error()) // plain structs of ours
	}
	return b
}

func entryUID(src Source, seq uint64) string {
	return fmt.Sprintf("%s/ledger/%d", src.TrustDomain, seq)
}

func (e *ocsf) is(class, activity int, name string) {
	e.CategoryUID, e.ClassUID, e.ActivityID, e.ActivityName, e.TypeUID = class/1000, class, activity, name, class*100+activity
	e.CategoryName, e.ClassName = categoryNames[e.CategoryUID], classNames[class]
}

func (e *ocsf) severity(id int) {
	e.SeverityID, e.Severity = id, [...]string{"Unknown", "Informational", "Low", "Medium", "High", "Critical"}[id]
}

// ended says how it went: Success, Failure, or the word that Remit has for it.
func (e *ocsf) ended(status string) {
	e.Status, e.StatusID = status, 99
	switch status {
	case "Success":
		e.StatusID = 1
	case "Failure":
		e.StatusID = 2
	}
}

// ocsfPrincipal is an agent (or tool), a person, or Remit itself. by is what stands in an entry: a name or a SPIFFE ID.
func ocsfPrincipal(src Source, by string) ocsfUser {
	u := ocsfUser{Name: by, UID: by, Domain: src.TrustDomain, TypeID: 4, Type: "Service"}
	switch {
	case strings.HasPrefix(by, "operator/"):
		u.TypeID, u.Type = 2, "Admin"
	case by == "remit" || by == "":
		u.Name, u.UID, u.TypeID, u.Type = "remit", "remit", 3, "System"
	}
	return u
}

func (s *Signal) ocsfFinding(e *ocsf, src Source) {
	var f remit.Finding
	_ = json.Unmarshal(s.Data, &f) // the ledger's own
	e.is(classFinding, 1, "Create")
	e.severity(map[remit.Severity]int{remit.SeverityLow: 2, remit.SeverityMedium: 3, remit.SeverityHigh: 4, remit.SeverityCritical: 5}[f.Severity])
	e.StatusID, e.Status, e.IsAlert, e.Message = 1, "New", true, f.Text
	if s.Kind == remit.EventClosed {
		var d struct {
			Reason string `json:"reason"`
		}
		_ = json.Unmarshal(s.Data, &d)
		e.is(classFinding, 3, "Close")
		e.StatusID, e.Status, e.IsAlert, e.Message, e.StatusDetail = 4, "Resolved", false, "the finding was closed", d.Reason
	} else {
		e.Unmapped.Response, e.Unmapped.Held, e.Unmapped.Score = f.Response.String(), f.Held, f.Score
	}
	analytic := ocsfAnalytic{string(f.Kind), 1, "Rule"}
	if f.Kind == remit.FindingUnusual {
		analytic.TypeID, analytic.Type = 2, "Behavioral"
	}
	e.Finding = &ocsfFinding{UID: string(f.ID), Title: string(f.Kind), Desc: f.Text, Types: []string{string(f.Kind)}, Created: e.Time, Analytic: analytic}
	for _, seq := range f.Events {
		e.Finding.Related = append(e.Finding.Related, ocsfEvent{entryUID(src, seq)})
	}
	if f.Target != "" {
		e.Resources = []ocsfNamed{{Name: f.Target}}
	}
	if s.Agent != "" {
		e.Evidences = []ocsfActor{{ocsfPrincipal(src, string(s.Agent))}}
	}
	e.Unmapped.Finding = f.ID
}

// ocsfRequest fills in what a request for a decision is. Action and target are what somebody asked for, within the bounds of a request.
func (s *Signal) ocsfRequest(e *ocsf, src Source, action, target string) {
	action, target = cmp.Or(action, "unknown"), cmp.Or(target, "unknown")
	e.is(classAPI, 99, action)
	user := ocsfPrincipal(src, string(s.Agent))
	if s.Agent == "" {
		user = ocsfPrincipal(src, s.By)
	}
	e.Actor = &ocsfActor{user}
	e.API = &ocsfAPI{Operation: action, Service: ocsfNamed{Name: target}}
	e.API.Request.UID = string(s.Decision)
	e.Src = &ocsfEndpoint{cmp.Or(s.By, "unknown"), string(s.Agent)}
	e.Resources = []ocsfNamed{{Name: target}}
	e.Metadata.Profiles = []string{"security_control"}
}

func (s *Signal) ocsfDecision(e *ocsf, src Source) {
	var d struct {
		Effect     remit.Effect
		Action     string
		Target     string
		Credential string
		Level      string
		Via        string
		Hold       remit.HoldID
		Policy     remit.Digest
		Permission remit.PermissionRef
		Reasons    []struct {
			Code remit.ReasonCode
			Of   string
		}
	}
	_ = json.Unmarshal(s.Data, &d)
	s.ocsfRequest(e, src, d.Action, d.Target)
	if d.Credential != "" {
		e.Actor.User.Credentials = []ocsfCredential{{d.Credential, "SVID"}}
	}
	var why []string
	for i, r := range d.Reasons {
		if i == 0 {
			e.StatusCode = string(r.Code)
		}
		why = append(why, strings.TrimSpace(string(r.Code)+" "+r.Of))
	}
	e.judged(d.Effect)
	e.StatusDetail = remit.Clip(strings.Join(why, ", "), 1000)
	name := strings.Trim(d.Permission.Workflow+"/"+d.Permission.Stage+"/"+d.Permission.Name, "/")
	e.Policy = &ocsfNamed{cmp.Or(name, "default deny"), string(d.Policy)}
	e.Message = fmt.Sprintf("%s: %s for %s on %s", d.Effect, s.Agent, d.Action, d.Target)
	e.Unmapped.Hold, e.Unmapped.Via, e.Unmapped.Level = d.Hold, d.Via, d.Level
}

// judged maps an answer: what is held is neither allowed nor denied, and delayed.
func (e *ocsf) judged(effect remit.Effect) {
	e.severity(1)
	switch effect {
	case remit.Allow:
		e.ActionID, e.Action, e.Disposition = 1, "Allowed", 1
		e.ended("Success")
	case remit.Hold:
		e.ActionID, e.Action, e.Disposition = 99, "hold", 14
		e.ended("hold")
	default:
		e.severity(2)
		e.ActionID, e.Action, e.Disposition = 2, "Denied", 2
		e.ended("Failure")
	}
}

func (s *Signal) ocsfFolded(e *ocsf, src Source) {
	var d struct {
		Reasons []remit.ReasonCode
		Action  string
		Target  string
		First   time.Time
		Last    time.Time
		Count   uint64
	}
	_ = json.Unmarshal(s.Data, &d)
	s.ocsfRequest(e, src, d.Action, d.Target)
	e.judged(remit.Deny)
	e.Count, e.Start, e.End, e.Time = d.Count, d.First.UnixMilli(), d.Last.UnixMilli(), d.First.UnixMilli()
	if len(d.Reasons) > 0 {
		e.StatusCode = string(d.Reasons[0])
	}
	e.Message = fmt.Sprintf("deny, %d times more: %s for %s on %s", d.Count, s.Agent, d.Action, d.Target)
}

func (s *Signal) ocsfGrant(e *ocsf, src Source) {
	var g struct {
		Action, Target  string
		Issued, Expires time.Time
		Permission      remit.PermissionRef
	}
	_ = json.Unmarshal(s.Data, &g)
	e.is(classSession, 1, "Assign Privileges")
	e.severity(1)
	e.ended("Success")
	user, by := ocsfPrincipal(src, string(s.Agent)), ocsfPrincipal(src, s.By)
	e.User, e.Actor, e.Privileges = &user, &ocsfActor{by}, []string{g.Action + " " + g.Target}
	e.Session = &ocsfSession{string(s.Grant), string(s.Lease), g.Issued.UnixMilli(), g.Expires.UnixMilli(), src.TrustDomain}
	e.Message = fmt.Sprintf("%s was granted %s on %s", s.Agent, g.Action, g.Target)
}

// ocsfUser is what befalls an agent or its credentials. A lease that is being ended and is not gone yet has no word in the schema.
func (s *Signal) ocsfUser(e *ocsf, src Source) {
	var d struct {
		Reason  string          `json:"reason"`
		Finding remit.FindingID `json:"finding"`
	}
	_ = json.Unmarshal(s.Data, &d)
	user, by := ocsfPrincipal(src, string(s.Agent)), ocsfPrincipal(src, s.By)
	e.User, e.Actor = &user, &ocsfActor{by}
	e.severity(1)
	e.ended("Success")
	e.Unmapped.Finding, e.StatusDetail = d.Finding, d.Reason
	what := map[remit.EventKind]struct {
		activity   int
		name, text string
	}{
		remit.EventSuspended:     {5, "Disable", "was suspended"},
		remit.EventReinstated:    {4, "Enable", "was reinstated"},
		remit.EventLeaseActive:   {18, "Add Programmatic Credentials", "has a credential"},
		remit.EventLeaseFailed:   {18, "Add Programmatic Credentials", "was given no credential"},
		remit.EventLeaseRevoking: {19, "Remove Programmatic Credentials", "is losing a credential"},
		remit.EventLeaseEnded:    {19, "Remove Programmatic Credentials", "lost a credential"},
	}[s.Kind]
	e.is(classUser, what.activity, what.name)
	e.Message = string(s.Agent) + " " + what.text
	switch s.Kind {
	case remit.EventSuspended:
		e.severity(4)
	case remit.EventLeaseFailed:
		e.ended("Failure")
	case remit.EventLeaseRevoking:
		e.ended("revoking")
	}
	if s.Lease != "" {
		user.Credentials = []ocsfCredential{{string(s.Lease), "lease"}}
	}
}
