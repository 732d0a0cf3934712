"""The report's page: one template, its style inside, nothing fetched."""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} · align_jax</title>
<style>
:root { --ink:#16202c; --quiet:#5d6b78; --paper:#fff; --ground:#f5f7f8;
  --rule:#e1e6ea; --accent:#0b7a75; --good:#16794a; --bad:#b3261e;
  --raw:#0b7a7555; }
@media (prefers-color-scheme: dark) { :root { --ink:#e8edf1; --quiet:#9aa7b2;
  --paper:#1a232d; --ground:#11181f; --rule:#2c3843; --accent:#4cc3b9;
  --good:#5bc48d; --bad:#f08a80; --raw:#4cc3b944; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--ground); color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif; }
main { max-width:1080px; margin:0 auto; padding:40px 24px 64px; }
h1 { font-size:30px; line-height:1.2; margin:0 0 6px; letter-spacing:-.01em; }
h2 { font-size:20px; margin:44px 0 4px; }
p { margin:4px 0 14px; max-width:72ch; }
.quiet { color:var(--quiet); }
section > p { color:var(--quiet); }
.cards { display:grid; gap:14px; margin:26px 0 10px;
  grid-template-columns:repeat(auto-fit,minmax(170px,1fr)); }
.card,.panel { background:var(--paper); border:1px solid var(--rule);
  border-radius:12px; }
.card { padding:16px 18px; }
.card b { display:block; font-size:30px; line-height:1.15;
  font-variant-numeric:tabular-nums; letter-spacing:-.01em; }
.card.first { border-color:var(--accent); }
.card.first b { color:var(--accent); }
.card span { color:var(--quiet); font-size:14px; display:block; }
.panel { padding:14px 16px; margin:12px 0; overflow-x:auto; }
table { border-collapse:collapse; width:100%;
  font-variant-numeric:tabular-nums; }
th,td { text-align:right; padding:7px 10px; border-top:1px solid var(--rule);}
th:first-child,td:first-child { text-align:left; }
tr:first-child > * { border-top:0; }
th { font-weight:600; font-size:14px; color:var(--quiet); }
.facts td { text-align:left; overflow-wrap:anywhere; font-size:14px; }
.facts td:first-child { color:var(--quiet); white-space:nowrap; width:13em; }
.samples { display:grid; gap:14px;
  grid-template-columns:repeat(auto-fill,minmax(300px,1fr)); }
.sample { display:flex; gap:14px; margin:0; align-items:flex-start; }
.sample img { width:96px; height:96px; border-radius:8px; flex:none; }
.sample ul { list-style:none; margin:0; padding:0; font-size:14px;
  line-height:1.45; min-width:0; }
.sample li { margin-bottom:6px; }
.right { color:var(--good); font-weight:600; }
.wrong { color:var(--bad); font-weight:600; }
.picture { padding:0; overflow:hidden; background:#fff; }
.picture img { display:block; width:100%; height:auto; }
.word { display:inline-block; padding:1px 8px; margin:2px 3px 2px 0;
  border:1px solid var(--rule); border-radius:99px; font-size:14px; }
.word i { color:var(--quiet); font-style:normal; font-size:12px; }
.chart { width:100%; height:auto; display:block; font-size:12px; }
.chart text { fill:var(--quiet); }
.chart .rule { stroke:var(--rule); }
.chart path { fill:none; stroke-linejoin:round; }
.chart .line { stroke:var(--accent); stroke-width:2.2; }
.chart .raw { stroke:var(--raw); stroke-width:1; }
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
<p class="quiet">{{ subtitle }}</p>

{% if e %}
<div class="cards">
  <div class="card first"><b>{{ pct(e.accuracy) }}</b>
    <span>{{ e.headline }}, {{ e.n }} questions on {{ e.images }} images</span>
    {% if e.ci95 %}<span>95 %: {{ pct(e.ci95[0]) }} to
      {{ pct(e.ci95[1]) }}</span>{% endif %}</div>
  {% if e.margin is not none %}
  <div class="card"><b>{{ points(e.margin) }}</b>
    <span>points above the better of the two baselines beside</span>
    {% if e.margin_ci95 %}<span>95 %: {{ points(e.margin_ci95[0]) }} to
      {{ points(e.margin_ci95[1]) }}</span>{% endif %}</div>
  {% endif %}
  {% if e.question_prior_accuracy is not none %}
  <div class="card"><b>{{ pct(e.question_prior_accuracy) }}</b>
    <span>best training answer to each question, without looking</span></div>
  {% endif %}
  {% if e.blind_accuracy is not none %}
  <div class="card"><b>{{ pct(e.blind_accuracy) }}</b>
    <span>same model, each image exchanged for one that shows something
      else</span></div>
  {% endif %}
</div>
<section>
<h2>By kind of question</h2>
<p>{{ e.protocol }}.</p>
<div class="panel"><table>
<tr><th>kind</th><th>questions</th><th>accuracy</th><th>prior</th>
  <th>exchanged image</th></tr>
{% for name, row in e.by_type.items() %}
<tr><td>{{ name }}</td><td>{{ row.n }}</td><td>{{ pct(row.accuracy) }}</td>
  <td>{{ pct(row.question_prior_accuracy) }}</td>
  <td>{{ pct(row.blind_accuracy) }}</td></tr>
{% endfor %}
<tr><td>all</td><td>{{ e.n }}</td><td>{{ pct(e.accuracy) }}</td>
  <td>{{ pct(e.question_prior_accuracy) }}</td>
  <td>{{ pct(e.blind_accuracy) }}</td></tr>
</table></div>
<p>{% if e.majority_accuracy is none %}There is no training split, so that
what needs no looking is unknown beside the exchanged images.
{% else %}The most frequent answer alone reaches
{{ pct(e.majority_accuracy) }}. {% endif %}
{% if e.probe %}A linear probe of the tower's features reads
{% for name, value in e.probe.items() %}{{ name }} {{ pct(value)
}}{{ ", " if not loop.last }}{% endfor %}: about the most that a
connector of this frozen tower can say. {% endif %}
{% if e.noise %}With Gaussian noise on the features (in units of their own
standard deviation):
{% for sigma, value in e.noise.items() %}{{ pct(value) }} at
{{ sigma }}{{ ", " if not loop.last }}{% endfor %}.{% endif %}</p>
</section>
{% else %}
<p>Not evaluated yet: <code>align-jax evaluate RUN</code> adds results
here.</p>
{% endif %}

{% if samples %}
<section>
<h2>Questions and answers</h2>
<p>From the test split, drawn by seed, not by success.</p>
<div class="samples">
{% for s in samples %}
<div class="panel sample"><img alt="test image" src="{{ png(s.image) }}"><ul>
{% for q in s.questions %}<li>{{ q.question }}<br>
<span class="{{ 'right' if q.right else 'wrong' }}">{{
'✓' if q.right else '✗' }} {{ q.prediction or '(nothing)' }}</span>
{% if not q.right %}<span class="quiet">truth: {{ q.answer }}</span>{% endif
%}</li>{% endfor %}
</ul></div>
{% endfor %}
</div>
</section>
{% endif %}

{% if pictures %}
<section>
<h2>What the visual tokens say</h2>
<p>{{ words_note }}</p>
{% for picture in pictures %}
<div class="panel picture"><img alt="words of each visual token over its patch"
  src="{{ png(picture) }}"></div>
{% endfor %}
</section>
{% endif %}

{% if distribution %}
<section>
<h2>The distribution over words</h2>
<p>This connector makes each visual token a weighted mean of word embeddings.
Over {{ distribution.tokens }} visual tokens:</p>
<div class="cards">
  <div class="card"><b>{{ num(distribution.entropy) }}</b>
    <span>nats of entropy; uniform over all
    {{ "{:,}".format(distribution.vocabulary) }} words would be
    {{ num(distribution.uniform) }}</span></div>
  <div class="card"><b>{{ distribution.effective_words }}</b>
    <span>words carry 90 % of a token (median; from
    {{ distribution.effective_range[0] }} to
    {{ distribution.effective_range[1] }})</span></div>
  <div class="card"><b>{{ pct(distribution.largest) }}</b>
    <span>on a token's likeliest word, on average</span></div>
</div>
<div class="panel">{% for word, share in distribution.words %}
<span class="word">{{ word }} <i>{{ pct(share) }}</i></span>{% endfor %}</div>
</section>
{% endif %}

{% if geometry %}
<section>
<h2>Where visual tokens lie</h2>
<p>Norms and directions of visual tokens beside the word embeddings of the
language model.</p>
<div class="panel"><table>
<tr><th></th><th>mean norm</th><th>5 % – 95 %</th>
  <th>cosine between two</th><th>norm of the mean</th></tr>
{% for name, c in (("visual tokens", geometry.visual),
                   ("word embeddings", geometry.text)) %}
<tr><td>{{ name }}</td><td>{{ num(c.norm) }}</td>
  <td>{{ num(c.norm_percentiles[0]) }} – {{ num(c.norm_percentiles[-1]) }}</td>
  <td>{{ cos(c.cosine) }}</td><td>{{ num(c.mean_norm) }}</td></tr>
{% endfor %}
</table>
<p class="quiet">Visual tokens are {{ num(geometry.norm_ratio) }} times as
long as words; the cosine between the two means is
{{ cos(geometry.cosine_of_means) }}.</p></div>
{% if norms %}<div class="panel picture"><img
  alt="histograms of norms" src="{{ png(norms) }}"></div>{% endif %}
</section>
{% endif %}

{% if curve %}
<section>
<h2>Training</h2>
<p>Loss by step, as the run's metrics have it.</p>
<div class="panel">{{ curve }}</div>
</section>
{% endif %}

<section>
<h2>How this came about</h2>
<div class="panel"><table class="facts">
{% for name, value in facts %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table></div>
</section>
</main>
</body>
</html>
"""
