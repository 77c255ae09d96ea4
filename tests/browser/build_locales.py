"""Writes locales/<language>/nodeDefs.json: titles and descriptions of nodes, names of inputs and outputs, tooltips.

    python tests/browser/build_locales.py

Run it again when a node, an input or an output is added. Descriptions are in node_descriptions.json beside this file.
Names come from one glossary for all nodes; those in `SAME`
stay in English, and tests/unit/test_page_words.py fails for a name that is in neither. Tooltips are the rows of the
help pages in that language, where there is one. The page finds an output by its index.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("zh", "ja", "fr", "es")
TITLES = {
    "BespokeImageFolder": ("图片文件夹", "画像フォルダー", "Dossier d'images", "Carpeta de imágenes"),
    "BespokeClipFolder": ("视频片段文件夹", "クリップフォルダー", "Dossier de clips", "Carpeta de clips"),
    "BespokeImageBatch": ("图片批次", "画像バッチ", "Lot d'images", "Lote de imágenes"),
    "BespokeCaptionVariants": ("描述变体", "キャプションの変形", "Variantes de légendes", "Variantes de descripciones"),
    "BespokeCombineImageSets": (
        "合并图片集",
        "画像セットを結合",
        "Combiner des jeux d'images",
        "Combinar conjuntos de imágenes",
    ),
    "BespokePairImageSets": (
        "配对图片集",
        "画像セットを対にする",
        "Apparier des jeux d'images",
        "Emparejar conjuntos de imágenes",
    ),
    "BespokeSaveImageSet": (
        "保存图片集",
        "画像セットを保存",
        "Enregistrer le jeu d'images",
        "Guardar conjunto de imágenes",
    ),
    "BespokeTrainSlider": ("训练滑块", "スライダーを学習", "Entraîner un curseur", "Entrenar un control deslizante"),
    "BespokeTrainLora": ("训练 LoRA", "LoRA を学習", "Entraîner un LoRA", "Entrenar un LoRA"),
    "BespokeFindLearningRate": (
        "寻找学习率",
        "学習率を探す",
        "Trouver le taux d'apprentissage",
        "Hallar la tasa de aprendizaje",
    ),
    "BespokeFindWordLearningRate": (
        "寻找新词的学习率",
        "単語の学習率を探す",
        "Trouver le taux d'apprentissage d'un mot",
        "Hallar la tasa de aprendizaje de una palabra",
    ),
    "BespokeSaveLora": ("保存 LoRA", "LoRA を保存", "Enregistrer le LoRA", "Guardar LoRA"),
    "BespokeLoadLora": ("加载 LoRA", "LoRA を読み込む", "Charger un LoRA", "Cargar LoRA"),
    "BespokeInjectLora": ("注入 LoRA", "LoRA を注入", "Injecter un LoRA", "Inyectar LoRA"),
    "BespokeComposeLoras": ("合成 LoRA", "LoRA を合成", "Composer des LoRA", "Componer LoRA"),
    "BespokeExtractLora": ("提取 LoRA", "LoRA を抽出", "Extraire un LoRA", "Extraer LoRA"),
    "BespokeLoraStackFromRun": (
        "从训练生成 LoRA 堆栈",
        "学習から LoRA スタック",
        "Pile de LoRA d'un entraînement",
        "Pila de LoRA de un entrenamiento",
    ),
    "BespokeInspectLora": ("检查 LoRA", "LoRA を調べる", "Examiner un LoRA", "Examinar LoRA"),
    "BespokePartialDenoise": ("部分去噪", "部分ノイズ除去", "Débruitage partiel", "Eliminación parcial de ruido"),
    "BespokeStrengthSigmas": ("强度 sigma", "強度のシグマ", "Sigmas de force", "Sigmas de fuerza"),
    "BespokeLatentMaskBlend": (
        "潜空间遮罩混合",
        "潜在マスクブレンド",
        "Mélange latent par masque",
        "Mezcla latente con máscara",
    ),
    "BespokeCropToMask": (
        "按遮罩裁剪",
        "マスクに合わせて切り抜く",
        "Recadrer au masque",
        "Recortar según la máscara",
    ),
    "BespokeRestoreUnmasked": (
        "还原遮罩外",
        "マスク外を復元",
        "Restaurer hors du masque",
        "Restaurar fuera de la máscara",
    ),
    "BespokeFillMasked": ("填充遮罩", "マスク内を埋める", "Remplir sous le masque", "Rellenar bajo la máscara"),
    "BespokeMatchColors": ("匹配颜色", "色を合わせる", "Accorder les couleurs", "Igualar colores"),
    "BespokeTrainTextualInversion": (
        "训练文本反演",
        "Textual Inversion を学習",
        "Entraîner une inversion textuelle",
        "Entrenar inversión textual",
    ),
    "BespokeTrainWordAndLora": (
        "训练新词和 LoRA",
        "単語と LoRA を学習",
        "Entraîner un mot et un LoRA",
        "Entrenar una palabra y un LoRA",
    ),
    "BespokeSaveEmbedding": ("保存嵌入", "埋め込みを保存", "Enregistrer l'embedding", "Guardar embedding"),
    "BespokeApplyEmbedding": ("应用嵌入", "埋め込みを適用", "Appliquer l'embedding", "Aplicar embedding"),
    "BespokeInspectEmbedding": ("检查嵌入", "埋め込みを調べる", "Examiner l'embedding", "Examinar embedding"),
    "BespokeExportLoraJob": (
        "导出 LoRA 任务",
        "LoRA ジョブを書き出す",
        "Exporter la tâche LoRA",
        "Exportar tarea LoRA",
    ),
    "BespokeExportSliderJob": (
        "导出滑块任务",
        "スライダーのジョブを書き出す",
        "Exporter la tâche de curseur",
        "Exportar tarea de control deslizante",
    ),
    "BespokeExportTextualInversionJob": (
        "导出文本反演任务",
        "Textual Inversion ジョブを書き出す",
        "Exporter la tâche d'inversion textuelle",
        "Exportar tarea de inversión textual",
    ),
    "BespokeExportWordAndLoraJob": (
        "导出新词和 LoRA 任务",
        "単語と LoRA のジョブを書き出す",
        "Exporter la tâche mot et LoRA",
        "Exportar tarea de palabra y LoRA",
    ),
    "BespokeCompare": ("比较", "比較", "Comparer", "Comparar"),
    "BespokeLoraSweep": ("LoRA 扫描", "LoRA スイープ", "Balayage de LoRA", "Barrido de LoRA"),
    "BespokeInspectRun": ("检查训练", "学習を調べる", "Examiner un entraînement", "Examinar un entrenamiento"),
}
OUTPUTS = {  # names that no input has
    "report": ("报告", "レポート", "rapport", "informe"),
    "heatmap": ("热力图", "ヒートマップ", "carte de chaleur", "mapa de calor"),
    "plot": ("图表", "グラフ", "graphique", "gráfico"),
    "pictures": ("逐张图片", "画像（一枚ずつ）", "images une à une", "imágenes una a una"),
    "prompt_word": ("提示词用词", "プロンプト用の語", "mot du prompt", "palabra del prompt"),
    "trigger_words": ("触发词", "トリガー語", "mots déclencheurs", "palabras clave"),
    "sheet": ("总览图", "一覧画像", "planche", "hoja de contactos"),
    "curve": ("曲线", "曲線", "courbe", "curva"),
    "card": ("证据卡", "根拠カード", "fiche de preuves", "ficha de pruebas"),
    "latent_mask": ("潜空间遮罩", "潜在マスク", "masque latent", "máscara latente"),
    "grid": ("网格", "グリッド", "grille", "cuadrícula"),
    "start": ("起点", "開始点", "départ", "comienzo"),
    "changed_outside": ("遮罩外改变数", "マスク外の変化数", "changés hors du masque", "cambiados fuera"),
    "for_lists": ("用于列表", "一覧用", "pour les listes", "para listas"),
    "loss": ("损失", "損失", "perte", "pérdida"),
}
SAME = frozenset({"clip", "vae", "cfg", "alpha", "lora", "rslora", "sigmas"})  # the field's words in every language
INPUTS = {
    "adapter": ("适配器", "アダプター", "adaptateur", "adaptador"),
    "lokr_factor": ("LoKr 因子", "LoKr の因子", "facteur LoKr", "factor LoKr"),
    "rank_dropout": ("秩丢弃率", "ランクの省略率", "rangs omis", "rangos omitidos"),
    "module_dropout": ("层丢弃率", "層の省略率", "couches omises", "capas omitidas"),
    "max_norm": ("最大范数", "最大ノルム", "norme maximale", "norma máxima"),
    "training_adapter": ("训练适配器", "学習用アダプター", "adaptateur d'entraînement", "adaptador de entrenamiento"),
    "training_adapter_strength": (
        "训练适配器强度",
        "学習用アダプターの強度",
        "force de l'adaptateur",
        "fuerza del adaptador",
    ),
    "ema": ("滑动平均（EMA）", "移動平均（EMA）", "moyenne mobile (EMA)", "media móvil (EMA)"),
    "runs": ("训练记录", "学習の記録", "entraînements", "entrenamientos"),
    "width": ("宽度", "幅", "largeur", "ancho"),
    "height": ("高度", "高さ", "hauteur", "alto"),
    "lowest": ("最低", "最低", "le plus bas", "el más bajo"),
    "highest": ("最高", "最高", "le plus haut", "el más alto"),
    "probes": ("试验数", "試行数", "essais", "pruebas"),
    "sets": ("图片集", "画像セット", "jeux d'images", "conjuntos de imágenes"),
    "weights": ("权重", "重み", "poids", "pesos"),
    "balance": ("平衡", "バランス", "équilibre", "equilibrio"),
    "resolutions": ("分辨率（多个）", "解像度（複数）", "résolutions", "resoluciones"),
    "model": ("模型", "モデル", "modèle", "modelo"),
    "images": ("图片", "画像", "images", "imágenes"),
    "targets": ("目标层", "対象の層", "couches visées", "capas objetivo"),
    "target": ("目标提示词", "対象のプロンプト", "prompt visé", "prompt objetivo"),
    "more": ("更多", "増やす方", "davantage de", "más de"),
    "less": ("更少", "減らす方", "moins de", "menos de"),
    "guidance": ("引导强度", "ガイダンス", "guidage", "guía"),
    "positive_images": ("正图片", "正の画像", "images positives", "imágenes positivas"),
    "negative_images": ("负图片", "負の画像", "images négatives", "imágenes negativas"),
    "rank": ("秩", "ランク", "rang", "rango"),
    "learning_rate": ("学习率", "学習率", "taux d'apprentissage", "tasa de aprendizaje"),
    "steps": ("步数", "ステップ数", "étapes", "pasos"),
    "batch_size": ("批次大小", "バッチサイズ", "taille de lot", "tamaño de lote"),
    "seed": ("种子", "シード", "graine", "semilla"),
    "custom_targets": ("自定义目标层", "対象の層（任意）", "couches au choix", "capas a medida"),
    "validation": ("留出图片数", "検証画像数", "images de validation (nombre)", "imágenes de validación (número)"),
    "validation_images": ("验证图片", "検証画像", "images de validation", "imágenes de validación"),
    "lr_schedule": ("学习率曲线", "学習率の推移", "courbe du taux", "curva de la tasa"),
    "warmup_steps": ("预热步数", "ウォームアップ", "étapes de chauffe", "pasos de calentamiento"),
    "optimizer": ("优化器", "オプティマイザー", "optimiseur", "optimizador"),
    "gradient_accumulation": ("梯度累积", "勾配累積", "accumulation du gradient", "acumulación de gradiente"),
    "max_grad_norm": ("最大梯度范数", "勾配ノルム上限", "norme max. du gradient", "norma máx. del gradiente"),
    "loss_weighting": ("损失加权", "損失の重み付け", "pondération de la perte", "ponderación de la pérdida"),
    "timestep_sampling": (
        "时间步采样",
        "タイムステップの抽出",
        "tirage des pas de temps",
        "muestreo de pasos de tiempo",
    ),
    "noise_offset": ("噪声偏移", "ノイズオフセット", "décalage du bruit", "desplazamiento del ruido"),
    "caption_dropout": ("描述丢弃率", "キャプション省略率", "légendes omises", "descripciones omitidas"),
    "precision": ("精度", "精度", "précision", "precisión"),
    "gradient_checkpointing": (
        "梯度检查点",
        "勾配チェックポイント",
        "points de reprise du gradient",
        "puntos de control del gradiente",
    ),
    "save_every": ("保存间隔", "保存間隔", "enregistrer toutes les", "guardar cada"),
    "sample_every": ("采样间隔", "サンプル間隔", "échantillon toutes les", "muestra cada"),
    "sample_prompt": ("采样提示词", "サンプルのプロンプト", "prompt d'échantillon", "prompt de muestra"),
    "keep": ("保留", "残すもの", "garder", "conservar"),
    "resume": ("继续", "再開", "reprendre", "reanudar"),
    "prior_images": ("先验图片", "事前画像", "images a priori", "imágenes previas"),
    "prior_weight": ("先验权重", "事前画像の重み", "poids a priori", "peso previo"),
    "train_text_encoder": (
        "训练文本编码器",
        "テキストエンコーダーも学習",
        "entraîner l'encodeur de texte",
        "entrenar el codificador de texto",
    ),
    "text_encoder_lr": (
        "文本编码器学习率",
        "テキストエンコーダーの学習率",
        "taux de l'encodeur de texte",
        "tasa del codificador de texto",
    ),
    "filename_prefix": ("文件名前缀", "ファイル名の頭", "préfixe du fichier", "prefijo del archivo"),
    "run": ("运行记录", "実行記録", "exécution", "ejecución"),
    "key_format": ("键名格式", "キー形式", "format des clés", "formato de claves"),
    "dtype": ("数值精度", "数値の型", "type de nombre", "tipo de número"),
    "clips": ("作为视频片段", "クリップとして", "comme clips", "como clips"),
    "frames": ("帧数", "フレーム数", "images par clip", "fotogramas"),
    "fps": ("每秒帧数", "毎秒フレーム数", "images par seconde", "fotogramas por segundo"),
    "frame_step": ("帧数步长", "フレーム数の刻み", "pas du nombre d'images", "paso de fotogramas"),
    "stride": (
        "片段间距（帧）",
        "クリップの間隔（フレーム）",
        "écart des clips (images)",
        "paso entre clips (fotogramas)",
    ),
    "max_clips": (
        "每个视频最多片段数",
        "動画ごとのクリップ数の上限",
        "clips par film au plus",
        "máximo de clips por vídeo",
    ),
    "scene_threshold": (
        "场景切换阈值",
        "場面転換のしきい値",
        "seuil de changement de plan",
        "umbral de cambio de escena",
    ),
    "first_frame": ("首帧", "最初のフレーム", "première image", "primer fotograma"),
    "frame_folders": ("帧文件夹", "フレームのフォルダー", "dossiers d'images", "carpetas de fotogramas"),
    "subfolders": ("子文件夹", "サブフォルダー", "sous-dossiers", "subcarpetas"),
    "pairs": ("成对图片", "画像の対", "paires", "pares"),
    "source": ("原图", "元の画像", "source", "origen"),
    "result": ("结果图", "結果の画像", "résultat", "resultado"),
    "source_encoding": ("原图编码", "元の画像の渡し方", "encodage de la source", "codificación del origen"),
    "folder_name": ("文件夹名", "フォルダー名", "nom du dossier", "nombre de la carpeta"),
    "base": ("基础模型", "ベースモデル", "modèle de base", "modelo base"),
    "base_clip": ("基础 CLIP", "ベース CLIP", "CLIP de base", "CLIP base"),
    "energy": ("保留能量", "残すエネルギー", "énergie gardée", "energía conservada"),
    "conv_rank": ("卷积秩", "畳み込みのランク", "rang des convolutions", "rango de convoluciones"),
    "norms_and_biases": ("归一化与偏置", "正規化とバイアス", "normes et biais", "normas y sesgos"),
    "compare_with": ("对比对象", "比べる LoRA", "comparer avec", "comparar con"),
    "lora_name": ("LoRA 文件", "LoRA ファイル", "fichier LoRA", "archivo LoRA"),
    "strength_model": ("模型强度", "モデル強度", "force (modèle)", "fuerza (modelo)"),
    "strength_clip": ("CLIP 强度", "CLIP 強度", "force (CLIP)", "fuerza (CLIP)"),
    "query": ("查询 Q", "クエリ Q", "requête Q", "consulta Q"),
    "key": ("键 K", "キー K", "clé K", "clave K"),
    "value": ("值 V", "バリュー V", "valeur V", "valor V"),
    "out": ("输出", "出力", "sortie", "salida"),
    "blocks": ("区块", "ブロック", "blocs", "bloques"),
    "start_percent": ("开始比例", "開始割合", "début (part)", "inicio (parte)"),
    "end_percent": ("结束比例", "終了割合", "fin (part)", "fin (parte)"),
    "keyframes": ("关键帧", "キーフレーム", "images clés", "fotogramas clave"),
    "partial": ("部分应用", "一部でも適用", "partiel", "parcial"),
    "use_range": ("仅用于训练区间", "学習範囲でのみ使う", "plage entraînée seule", "solo tramo entrenado"),
    "lora_stack": ("LoRA 堆栈", "LoRA スタック", "pile de LoRA", "pila de LoRA"),
    "density": ("密度", "密度", "densité", "densidad"),
    "energy_kind": ("能量的含义", "エネルギーの意味", "sens de l'énergie", "sentido de la energía"),
    "step": ("步", "ステップ", "étape", "paso"),
    "mode": ("方式", "方式", "mode", "modo"),
    "prompts": ("提示词（每行一个）", "プロンプト（一行に一つ）", "prompts (un par ligne)", "prompts (uno por línea)"),
    "loras": ("LoRA 列表", "LoRA の一覧", "liste de LoRA", "lista de LoRA"),
    "strengths": ("强度", "強度", "forces", "fuerzas"),
    "positive": ("正面条件", "ポジティブ", "positif", "positivo"),
    "negative": ("负面条件", "ネガティブ", "négatif", "negativo"),
    "latent_image": ("潜空间图像", "潜在画像", "image latente", "imagen latente"),
    "latent": ("潜空间", "潜在", "latent", "latente"),
    "strength": ("强度", "強度", "force", "fuerza"),
    "sampler_name": ("采样器", "サンプラー", "échantillonneur", "muestreador"),
    "scheduler": ("调度器", "スケジューラー", "planificateur", "planificador"),
    "contract": ("强度约定", "強度の定義", "sens de la force", "sentido de la fuerza"),
    "exact_steps": ("精确步数", "ステップ数を保つ", "étapes exactes", "pasos exactos"),
    "mask": ("遮罩", "マスク", "masque", "máscara"),
    "context": ("上下文（倍）", "周囲（倍）", "contexte (x)", "contexto (x)"),
    "context_mask": ("上下文遮罩", "周囲のマスク", "masque de contexte", "máscara de contexto"),
    "keep_aspect": ("保持比例", "縦横比を保つ", "garder les proportions", "mantener proporciones"),
    "each": ("逐个裁剪", "個別に切り抜く", "chaque partie", "cada parte"),
    "follow": ("跟随", "追従", "suivre", "seguir"),
    "pad": ("填充", "余白の埋め方", "remplissage", "relleno"),
    "multiple": ("倍数（像素）", "倍数（px）", "multiple (px)", "múltiplo (px)"),
    "crop": ("裁剪", "切り抜き", "recadrage", "recorte"),
    "masks": ("遮罩", "マスク", "masques", "máscaras"),
    "blend": ("混合方式", "混ぜ方", "mélange", "mezcla"),
    "grow": ("扩展（像素）", "拡張（px）", "agrandir (px)", "ampliar (px)"),
    "feather": ("羽化（像素）", "ぼかし（px）", "adoucir (px)", "difuminar (px)"),
    "coverage": ("覆盖", "セルの扱い", "couverture", "cobertura"),
    "min_strength": ("最小强度", "最小強度", "force minimale", "fuerza mínima"),
    "bias": ("偏置", "バイアス", "biais", "sesgo"),
    "preservation": ("保留强度", "保持の強さ", "préservation", "preservación"),
    "original": ("原图", "元画像", "original", "original"),
    "generated": ("生成图", "生成画像", "généré", "generada"),
    "match_color": ("匹配颜色", "色を合わせる", "accorder la couleur", "igualar color"),
    "image": ("图片", "画像", "image", "imagen"),
    "reference": ("参考图", "参照画像", "référence", "referencia"),
    "method": ("方法", "方法", "méthode", "método"),
    "fill": ("填充", "埋め方", "remplissage", "relleno"),
    "amount": ("程度", "量", "quantité", "cantidad"),
    "left": ("左（像素）", "左（px）", "gauche (px)", "izquierda (px)"),
    "top": ("上（像素）", "上（px）", "haut (px)", "arriba (px)"),
    "right": ("右（像素）", "右（px）", "droite (px)", "derecha (px)"),
    "bottom": ("下（像素）", "下（px）", "bas (px)", "abajo (px)"),
    "ramp": ("渐变（像素）", "なだらかな縁（px）", "rampe (px)", "rampa (px)"),
    "variation_seed": ("变体种子", "バリエーションのシード", "graine de variation", "semilla de variación"),
    "variation_strength": ("变体强度", "バリエーションの強さ", "force de variation", "fuerza de variación"),
    "folder": ("文件夹", "フォルダー", "dossier", "carpeta"),
    "captions": ("描述", "キャプション", "légendes", "descripciones"),
    "caption_syntax": ("描述语法", "キャプションの書式", "syntaxe des légendes", "sintaxis de las descripciones"),
    "template": ("模板", "テンプレート", "modèle de texte", "plantilla"),
    "separator": ("分隔符", "区切り", "séparateur", "separador"),
    "shuffle": ("打乱标签", "タグを並べ替え", "mélanger les tags", "mezclar etiquetas"),
    "keep_first": ("保留开头标签数", "先頭に残すタグ数", "premiers tags fixes", "primeras etiquetas fijas"),
    "drop_tags": ("标签丢弃率", "タグの省略率", "tags omis", "etiquetas omitidas"),
    "keep_tags": ("始终保留的标签", "必ず残すタグ", "tags toujours gardés", "etiquetas siempre presentes"),
    "variants": ("变体数", "変形の数", "variantes", "variantes"),
    "prepend": ("前置标签", "前に付けるタグ", "tags au début", "etiquetas al principio"),
    "append": ("后置标签", "後に付けるタグ", "tags à la fin", "etiquetas al final"),
    "replace": ("替换", "置き換え", "remplacer", "reemplazar"),
    "trigger": ("触发词", "トリガー語", "mot déclencheur", "palabra clave"),
    "resolution": ("分辨率", "解像度", "résolution", "resolución"),
    "bucket": ("按比例分桶", "縦横比を保つ", "garder les proportions", "conservar proporciones"),
    "bucket_step": ("分桶步长（像素）", "サイズの刻み（px）", "pas des tailles (px)", "paso de tamaños (px)"),
    "flip": ("镜像", "左右反転", "miroir", "espejo"),
    "repeats": ("重复", "繰り返し", "répétitions", "repeticiones"),
    "name": ("名称", "名前", "nom", "nombre"),
    "init_text": ("起始词", "初期の語", "mots de départ", "palabras iniciales"),
    "vectors": ("向量数", "ベクトル数", "vecteurs", "vectores"),
    "init": ("初始化", "初期化", "initialisation", "inicio"),
    "word_learning_rate": (
        "新词学习率",
        "単語の学習率",
        "taux d'apprentissage du mot",
        "tasa de aprendizaje de la palabra",
    ),
    "word_until": ("新词训练占比", "単語を学習する割合", "part où le mot apprend", "parte en que aprende la palabra"),
    "norm_limit": ("长度上限", "長さの上限", "limite de longueur", "límite de longitud"),
    "embedding": ("嵌入", "埋め込み", "embedding", "embedding"),
    "embedding_name": ("嵌入名称", "埋め込みの名前", "nom de l'embedding", "nombre del embedding"),
    "overwrite": ("覆盖", "上書き", "remplacer", "sobrescribir"),
    "format": ("格式", "形式", "format", "formato"),
    "score_pictures": ("逐图评分", "画像ごとの評価", "évaluer les images", "evaluar las imágenes"),
    "min_timestep": ("最小时间步", "最小タイムステップ", "pas de temps minimal", "paso de tiempo mínimo"),
    "max_timestep": ("最大时间步", "最大タイムステップ", "pas de temps maximal", "paso de tiempo máximo"),
    "preserve": ("保持的提示词", "保つプロンプト", "prompts à préserver", "prompts que preservar"),
    "preserve_weight": ("保持权重", "保持の重み", "poids de préservation", "peso de la preservación"),
    "loss_type": ("损失类型", "損失の種類", "type de perte", "tipo de pérdida"),
    "huber_c": ("Huber 阈值", "Huber のしきい値", "seuil de Huber", "umbral de Huber"),
    "multires_noise": ("多分辨率噪声", "多重解像度ノイズ", "bruit multirésolution", "ruido multirresolución"),
    "ip_noise_gamma": ("输入扰动", "入力の摂動", "perturbation de l'entrée", "perturbación de la entrada"),
    "compile": ("编译", "コンパイル", "compiler", "compilar"),
    "stop": ("停止", "終了", "arrêt", "parada"),
    "encoders": ("文本编码器", "テキストエンコーダー", "encodeurs de texte", "codificadores de texto"),
    "preview": ("预览图", "プレビュー", "aperçu", "vista previa"),
    "labels": ("标签", "ラベル", "étiquettes", "etiquetas"),
}


def name_of(word: str, place: int) -> str | None:
    """The name of an input or output in the language at this place of `LANGUAGES`; None where it stays English."""
    found = INPUTS.get(word) or OUTPUTS.get(word)
    return found[place] if found else None


# A row of a help page: the name that the node shows, the id where it differs, the text.
ROW = re.compile(r"^\| \*\*`?(.+?)`?\*\*(?: \(`(\w+)`\))? \| (.+) \|$", re.MULTILINE)
SPECIAL = frozenset("{}@|")  # vue-i18n, which the page uses, reads these as its own syntax


def tooltips_of(node: str, language: str) -> list[tuple[str, str]]:
    """(id, text without Markdown) of each row of the node's help page in a language; none without such a page."""
    page = ROOT / "js" / "docs" / node / f"{language}.md"
    rows = ROW.findall(page.read_text("utf-8")) if page.is_file() else []
    return [(id_ or name, plain(text)) for name, id_, text in rows]


def plain(text: str) -> str:
    """A text without Markdown's emphasis and code marks. Stars inside code stay."""
    parts = text.split("`")
    return "".join(part if at % 2 else part.replace("*", "") for at, part in enumerate(parts))


def entries(words: dict[str, str], rows: list[tuple[str, str]], place: int) -> dict[str, dict[str, str]]:
    """By key, the name and tooltip that the page reads, for {key: id}. What has neither is left out.

    rows: (id, tooltip) in the order of the keys, or empty. A tooltip with a special character stays English.
    """
    out = {}
    for key, word in words.items():
        name, tip = name_of(word, place), dict(rows).get(word, "")
        entry = ({"name": name} if name else {}) | ({"tooltip": tip} if tip and not SPECIAL & set(tip) else {})
        if entry:
            out[key] = entry
    return out


def node_texts(place: int) -> dict[str, dict]:
    """What nodeDefs.json holds in the language at this place of `LANGUAGES`, by node id."""
    schemas = json.loads((ROOT / "tests" / "comfy" / "schemas.json").read_text("utf-8"))
    descriptions = json.loads((ROOT / "tests" / "browser" / "node_descriptions.json").read_text("utf-8"))
    out = {}
    for node, schema in schemas.items():
        if node not in TITLES:
            continue
        inputs = {item["id"]: item["id"] for item in schema["inputs"]}
        outputs = {str(at): name for at, (_, _, name) in enumerate(schema["outputs"])}
        rows = tooltips_of(node, LANGUAGES[place])
        description = descriptions.get(node, {}).get(LANGUAGES[place])  # else the page shows the English one
        out[node] = {
            "display_name": f"Bespoke {TITLES[node][place]}",
            **({"description": description} if description else {}),
            "inputs": entries(inputs, rows[: len(inputs)], place),
            "outputs": entries(outputs, rows[len(inputs) :], place),
        }
    return out


def main() -> None:
    for place, language in enumerate(LANGUAGES):
        path = ROOT / "locales" / language / "nodeDefs.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(node_texts(place), indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
