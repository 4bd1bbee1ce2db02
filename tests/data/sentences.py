"""Sentences in Turkish, Azerbaijani and other languages, written for the tests."""

TURKISH = """\
Bugün hava çok soğuk olduğu için evde kalıp kitap okumaya karar verdim.
Annem sabah erkenden kalkıp bize güzel bir kahvaltı hazırladı.
Otobüs durağında yarım saat bekledim ama otobüs bir türlü gelmedi.
Bu akşam arkadaşlarımla birlikte sinemaya gitmeyi düşünüyoruz.
Köyün ortasındaki eski çınar ağacının altında yaşlı bir adam oturuyordu.
Öğretmenimiz sınavın gelecek haftaya ertelendiğini söyledi.
Denizin kenarında yürürken rengârenk taşlar topladık.
Yeni aldığım bilgisayar beklediğimden daha hızlı çalışıyor.
Kardeşim üniversiteyi bitirdikten sonra Ankara'da iş aramaya başladı.
Pazardan taze sebze ve meyve alıp eve döndük.
Hükümet, yeni yasa tasarısını önümüzdeki ay meclise sunacak.
Doktor bana günde en az iki litre su içmem gerektiğini söyledi.
Kedimiz bütün gün pencerenin önünde uyuyor.
Trenin saat kaçta kalkacağını görevliye sorduk.
Kar yağınca çocuklar sokağa çıkıp kardan adam yaptılar.
Babam gençliğinde bir gazetede muhabir olarak çalışmış.
Bu yemeğin tarifini nereden öğrendiğini merak ediyorum.
Müzede yüzlerce yıl öncesinden kalma eşyalar sergileniyor.
Dağın tepesine vardığımızda güneş çoktan batmıştı.
Şehir merkezinde trafik yoğun olduğundan toplantıya geç kaldım.
Türkçe öğrenmek isteyenler için ücretsiz bir kurs açıldı.
Komşumuz her sabah bahçesindeki çiçekleri sular.
Maçı kazanan takımın taraftarları sabaha kadar eğlendi.
Telefonumu evde unuttuğum için kimseye haber veremedim.
Deprem sonrasında bölgeye çadır ve battaniye gönderildi.
Büyükannem bize çocukken hep masal anlatırdı.
Yazarın son romanı kısa sürede on binlerce sattı.
Toplantıda bütçe görüşüldü ve yeni yönetim kurulu seçildi.
Hiçbir şey söylemeden kapıyı kapatıp çıktı.
Bilim insanları, iklim değişikliğinin etkilerini araştırıyor.
""".splitlines()

AZERBAIJANI = """\
Bu gün hava çox soyuq olduğuna görə evdə qalıb kitab oxumağı qərara aldım.
Anam səhər tezdən durub bizə gözəl səhər yeməyi hazırladı.
Dayanacaqda yarım saat gözlədim, amma avtobus gəlib çıxmadı ki, çıxmadı.
Axşam dostlarımla birlikdə kinoya getmək fikrindəyik.
Kəndin ortasındakı qoca çinarın altında bir ağsaqqal oturmuşdu.
Müəllimimiz imtahanın gələn həftəyə keçirildiyini dedi.
Dənizin kənarı ilə gəzərkən rəngbərəng daşlar yığdıq.
Yeni aldığım kompüter gözlədiyimdən də sürətli işləyir.
Qardaşım universiteti bitirəndən sonra Gəncədə iş axtarmağa başladı.
Bazardan təzə tərəvəz və meyvə alıb evə qayıtdıq.
Hökumət yeni qanun layihəsini gələn ay parlamentə təqdim edəcək.
Həkim mənə gündə ən azı iki litr su içməyi məsləhət gördü.
Pişiyimiz bütün günü pəncərənin qabağında yatır.
Qatarın saat neçədə yola düşəcəyini növbətçidən soruşduq.
Qar yağanda uşaqlar küçəyə çıxıb qar adamı düzəltdilər.
Atam cavanlıqda qəzetdə müxbir işləyib.
Bu xörəyin reseptini haradan öyrəndiyini bilmək istəyirəm.
Muzeydə yüz illər bundan əvvələ aid əşyalar nümayiş etdirilir.
Dağın zirvəsinə çatanda günəş çoxdan batmışdı.
Şəhərin mərkəzində tıxac olduğundan iclasa gecikdim.
Azərbaycan dilini öyrənmək istəyənlər üçün pulsuz kurs açılıb.
Qonşumuz hər səhər həyətindəki gülləri sulayır.
Oyunu udan komandanın azarkeşləri səhərə kimi şənləndi.
Telefonumu evdə yaddan çıxardığım üçün heç kimə xəbər verə bilmədim.
Zəlzələdən sonra bölgəyə çadır və yorğan göndərildi.
Nənəm uşaqlıqda bizə həmişə nağıl danışardı.
Yazıçının son romanı qısa müddətdə on minlərlə nüsxədə satıldı.
İclasda büdcə müzakirə olundu və yeni idarə heyəti seçildi.
Heç nə demədən qapını örtüb getdi.
Alimlər iqlim dəyişikliyinin nəticələrini tədqiq edirlər.
""".splitlines()

AZERBAIJANI_IN_ARABIC = """\
آذربایجان دیلی تورک دیللری عائله‌سینه عایددیر و دونیادا میلیونلارلا اینسان بو دیلده دانیشیر.
من بو گون ائوده قالیب کیتاب اوخودوم، سونرا دوستوملا گزمه‌یه گئتدیم.
تبریز شهری آذربایجانین ان بؤیوک شهرلریندن بیری‌دیر.
اوشاقلار مکتبه گئدیب درس اوخویورلار، آخشام ائوه قاییدیرلار.
بو کیتابین یازاری تبریزده آنادان اولموشدور و اوچ یوز صحیفه‌دن عیبارتدیر.
گونلرین بیر گونو بیر پادشاه وار ایدی، اونون اوچ اوغلو وار ایدی.
سلام، نئجه‌سن؟ یاخشییام، ساغ اول، ایشلر نئجه گئدیر؟
""".splitlines()

OTHERS = """\
The children were playing in the garden when it suddenly began to rain.
She has worked as a nurse in the same hospital for twenty years.
Please send us the signed documents before the end of the month.
The old bridge was closed to traffic after the flood.
Nobody knew why the shop had been empty for so long.
Сегодня утром мы поехали на дачу, чтобы собрать яблоки.
Новый закон вступит в силу с первого января следующего года.
Он долго смотрел в окно и ничего не отвечал.
В библиотеке открылась выставка старинных карт города.
Если завтра будет хорошая погода, мы пойдём на озеро.
Der Zug nach Hamburg hat heute leider eine halbe Stunde Verspätung.
Wir haben am Wochenende einen langen Spaziergang im Wald gemacht.
Die neue Schule wird im September feierlich eröffnet.
Le marché se tient tous les samedis sur la place de l'église.
Nous avons oublié les clés de la voiture à la maison.
Elle écrit une lettre à sa sœur qui habite au Canada.
Ayer por la tarde fuimos a la playa con toda la familia.
El médico le recomendó descansar durante una semana entera.
Il treno per Milano parte dal terzo binario fra dieci minuti.
Bugun havo juda issiq bo'lgani uchun daryo bo'yiga bordik.
Biz ertaga ertalab soat sakkizda yo'lga chiqamiz.
O'qituvchi bolalarga qiziqarli ertak aytib berdi.
Бүгін ауа райы жақсы болғандықтан, біз саябаққа бардық.
Менің ағам былтыр университетті бітіріп, жұмысқа тұрды.
دیروز با دوستانم به کوه رفتیم و تا غروب آنجا ماندیم.
کتابخانه شهر هر روز از ساعت نه صبح باز است.
تبریز یکی از شهرهای بزرگ ایران و مرکز استان آذربایجان شرقی است.
بقيت اليوم في البيت وقرأت كتابا ثم خرجت مع صديقي.
اردو پاکستان کی قومی زبان ہے اور بھارت میں بھی بولی جاتی ہے۔
Dzieci poszły do szkoły, chociaż padał gęsty śnieg.
Wczoraj wieczorem oglądaliśmy ciekawy film o górach.
ბავშვები ეზოში თამაშობდნენ, როცა წვიმა დაიწყო.
Copiii au plecat la munte împreună cu bunicii lor.
""".splitlines()
